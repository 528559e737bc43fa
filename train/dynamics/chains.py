"""Chain removal: links that lead nowhere, or come from nowhere, go (arXiv 2501.19107).

A chain joins two sides. A side is the output nodes (rows) or input nodes (columns) of one layer, each assigned to a
group; a group with no link on one side is dead, and its links on the other side are removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ...architectures import Decoder, Part, decoder_of

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Side:
    """Output nodes ("rows") or input nodes ("columns") of a layer, and each one's group: int64 [nodes].

    `nodes` are the places of these nodes in the layer, where it has others too; None: they are all of its nodes.
    """

    layer: str
    axis: Literal["rows", "columns"]
    groups: Tensor
    nodes: Tensor | None = None

    def alive(self, masks: Masks, group_count: int) -> Tensor:
        """bool [group_count]: whether any node of the group has a link."""
        linked = masks[self.layer].any(dim=1 if self.axis == "rows" else 0)
        if self.nodes is not None:
            linked = linked[self.nodes.to(linked.device)]
        counts = torch.zeros(group_count, dtype=torch.int64, device=linked.device)
        return counts.index_add_(0, self.groups.to(linked.device), linked.long()) > 0

    def keep(self, masks: Masks, alive: Tensor) -> int:
        """Remove the links of nodes whose group is not alive; returns how many went."""
        mask = masks[self.layer]
        nodes = alive[self.groups.to(mask.device)]
        if self.nodes is not None:
            others = torch.ones(mask.shape[0 if self.axis == "rows" else 1], dtype=torch.bool, device=mask.device)
            nodes = others.index_copy_(0, self.nodes.to(mask.device), nodes)
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
    """The chains of all blocks that are known: a decoder's, a Marian's, and stacks of linear layers.

    A node without links that has a bias still gives a constant; the chains leave biases as they are.
    """
    present = set(layers)
    decoder = decoder_of(model)
    chains = _feed_forward_chains(model) if decoder is None else decoder_chains(decoder)
    chains += _stack_chains(model)
    return [chain for chain in chains if {chain.first.layer, chain.second.layer} <= present]


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


def decoder_chains(decoder: Decoder) -> list[Chain]:
    """The chains of a decoder's attention and MLP blocks."""
    chains: list[Chain] = []
    for layer in decoder.layer_paths():
        chains += _attention_chains(decoder, layer)
        chains += [chain for block in decoder.mlp.blocks(layer) for chain in _mlp_chains(decoder, block)]
    return chains


def _attention_chains(decoder: Decoder, layer: str) -> list[Chain]:
    """Values feed the output. A key without links makes its queries idle, but where both are normed: there it counts in
    the norm of the others."""
    attention, size = decoder.attention, decoder.attention.head_size
    turned = decoder.rotary.size if decoder.rotary is not None else 0
    kv_nodes = torch.arange(attention.kv_heads * size)
    query_nodes = torch.arange(attention.heads * size)

    def kv_node(nodes: Tensor) -> Tensor:
        return nodes // (size * attention.readers) * size + nodes % size

    def rotary_pair(nodes: Tensor) -> Tensor:
        """The rotary embedding mixes places d and d + turned / 2: they live and die together."""
        place = nodes % size
        return nodes - place + torch.where(place < turned, place % max(1, turned // 2), place)

    q, k, v = attention.parts(layer)
    outputs = Side(f"{layer}.{attention.output}", "columns", kv_node(query_nodes))
    chains = [Chain(_rows(v, kv_nodes), outputs)]
    if attention.norm is None:
        chains.append(Chain(_rows(k, rotary_pair(kv_nodes)), _rows(q, rotary_pair(kv_node(query_nodes)))))
    return chains


def _mlp_chains(decoder: Decoder, block: str) -> list[Chain]:
    """Those of a block of a layer (see `Mlp.blocks`)."""
    nodes = torch.arange(decoder.mlp.width)
    inputs = [_rows(part, nodes) for part in decoder.mlp.parts(block, decoder.mlp.width)]
    output = Side(f"{block}.{decoder.mlp.output}", "columns", nodes)
    multiplied = [Chain(*inputs)] if len(inputs) == 2 else []
    return [*multiplied, *(Chain(side, output) for side in inputs)]


def _rows(part: Part, groups: Tensor) -> Side:
    return Side(part.module, "rows", groups, None if part.rows is None else torch.from_numpy(part.rows))
