"""Chain removal: links that lead nowhere, or come from nowhere, go (arXiv 2501.19107).

A chain joins two sides. A side is the output nodes (rows) or input nodes (columns) of one layer, each assigned to a
group; a group with no link on one side is dead, and its links on the other side are removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Side:
    """Output nodes ("rows") or input nodes ("columns") of a layer, and each one's group: int64 [nodes]."""

    layer: str
    axis: Literal["rows", "columns"]
    groups: Tensor

    def alive(self, masks: Masks, group_count: int) -> Tensor:
        """bool [group_count]: whether any node of the group has a link."""
        linked = masks[self.layer].any(dim=1 if self.axis == "rows" else 0)
        counts = torch.zeros(group_count, dtype=torch.int64, device=linked.device)
        return counts.index_add_(0, self.groups.to(linked.device), linked.long()) > 0

    def keep(self, masks: Masks, alive: Tensor) -> int:
        """Remove the links of nodes whose group is not alive; returns how many went."""
        mask = masks[self.layer]
        nodes = alive[self.groups.to(mask.device)]
        kept = mask & (nodes[:, None] if self.axis == "rows" else nodes[None, :])
        removed = int(mask.sum() - kept.sum())
        masks[self.layer] = kept
        return removed


@dataclass(frozen=True)
class Chain:
    """Two sides over the same groups."""

    first: Side
    second: Side

    def remove(self, masks: Masks) -> int:
        """Remove the links on each side of groups that are dead on the other; returns how many went."""
        group_count = 1 + int(max(self.first.groups.max(), self.second.groups.max()))
        first_alive = self.first.alive(masks, group_count)
        second_alive = self.second.alive(masks, group_count)
        return self.first.keep(masks, second_alive) + self.second.keep(masks, first_alive)


def consecutive(source: str, target: str, nodes: int) -> Chain:
    """Layer `source` feeds layer `target`: output node i of one is input node i of the other."""
    return Chain(Side(source, "rows", torch.arange(nodes)), Side(target, "columns", torch.arange(nodes)))


def paired(first: str, second: str, nodes: int) -> Chain:
    """Output node i of one layer is multiplied with output node i of the other."""
    return Chain(Side(first, "rows", torch.arange(nodes)), Side(second, "rows", torch.arange(nodes)))


def remove_chains(masks: Masks, chains: Sequence[Chain]) -> int:
    """Apply the chains, in place, until nothing changes; returns the number of links removed."""
    total = 0
    while removed := sum(chain.remove(masks) for chain in chains):
        total += removed
    return total


def model_chains(model: nn.Module, layers: Sequence[str]) -> list[Chain]:
    """The chains of all blocks that are known: a Llama's, a Marian's, and stacks of linear layers.

    A node without links that has a bias still gives a constant; the chains leave biases as they are.
    """
    present = set(layers)
    chains = _feed_forward_chains(model) + _stack_chains(model)
    found = [chain for chain in chains if {chain.first.layer, chain.second.layer} <= present]
    return llama_chains(model, layers) + found


def _feed_forward_chains(model: nn.Module) -> list[Chain]:
    """Of encoder-decoder Transformers after Vaswani et al.: fc1 feeds fc2; values feed the output projection."""
    chains = []
    for name, module in model.named_modules():
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in ("fc1", "fc2")):
            chains.append(consecutive(f"{name}.fc1", f"{name}.fc2", cast(nn.Linear, module.fc1).out_features))
        if all(
            isinstance(getattr(module, part, None), nn.Linear) for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        ):
            nodes = cast(nn.Linear, module.v_proj).out_features
            chains.append(consecutive(f"{name}.v_proj", f"{name}.out_proj", nodes))
            chains.append(paired(f"{name}.k_proj", f"{name}.q_proj", nodes))
    return chains


def _stack_chains(model: nn.Module) -> list[Chain]:
    """Linear layers of a Sequential with nothing but parameterless layers between them."""
    chains = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        last: tuple[str, int] | None = None
        for part, layer in module.named_children():
            path = f"{name}.{part}" if name else part
            if isinstance(layer, nn.Linear):
                if last is not None and last[1] == layer.in_features:
                    chains.append(consecutive(last[0], path, layer.in_features))
                last = (path, layer.out_features)
            elif any(True for _ in layer.parameters()):
                last = None
    return chains


def llama_chains(model: nn.Module, layers: Sequence[str]) -> list[Chain]:
    """The chains of a Llama's attention and MLP blocks, where both layers of a chain are among `layers`."""
    chains: list[Chain] = []
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("q_proj", "k_proj", "v_proj", "o_proj")):
            chains += _attention_chains(name, module)
        if all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
            chains += _mlp_chains(name, module.gate_proj.out_features)
    present = set(layers)
    return [chain for chain in chains if {chain.first.layer, chain.second.layer} <= present]


def _attention_chains(name: str, attention: Any) -> list[Chain]:
    head_dim = attention.head_dim
    kv_nodes = torch.arange(attention.k_proj.out_features)
    query_nodes = torch.arange(attention.q_proj.out_features)
    sharing = len(query_nodes) // len(kv_nodes)  # query heads that share a key/value head

    def kv_node(nodes: Tensor) -> Tensor:
        return nodes // (head_dim * sharing) * head_dim + nodes % head_dim

    def rotary_pair(nodes: Tensor) -> Tensor:
        """The rotary embedding mixes coordinates d and d + head_dim / 2: they live and die together."""
        return nodes // head_dim * head_dim + nodes % (head_dim // 2)

    values = Side(f"{name}.v_proj", "rows", kv_nodes)
    outputs = Side(f"{name}.o_proj", "columns", kv_node(query_nodes))
    keys = Side(f"{name}.k_proj", "rows", rotary_pair(kv_nodes))
    queries = Side(f"{name}.q_proj", "rows", rotary_pair(kv_node(query_nodes)))
    return [Chain(values, outputs), Chain(keys, queries)]


def _mlp_chains(name: str, nodes: int) -> list[Chain]:
    gate, up, down = f"{name}.gate_proj", f"{name}.up_proj", f"{name}.down_proj"
    return [paired(gate, up, nodes), consecutive(gate, down, nodes), consecutive(up, down, nodes)]
