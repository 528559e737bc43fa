"""Mixtures of experts, whose experts transformers keeps in one tensor, as linear layers like all others.

Legend: T tokens, k experts of a token, X experts, F neurons of one, E hidden size.

transformers holds gate and up of all experts of a layer as one parameter [X, 2F, E], and down as another [X, E, F].
Everything here is about linear layers with a mask each; so such a block becomes one MLP for each expert, once, on
reading. Only its state dict has the two parameters: what is saved is loaded by transformers as it is.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FUSED = ("gate_up_proj", "down_proj")
"""The parameters of a block of experts as transformers has them."""


EARLIER_NAMES = (
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"\.experts\.(\d+)\.w1\.", r".experts.\1.gate_proj."),
    (r"\.experts\.(\d+)\.w2\.", r".experts.\1.down_proj."),
    (r"\.experts\.(\d+)\.w3\.", r".experts.\1.up_proj."),
)
"""Parts of the names in Mixtral's checkpoints, and what stands for them here."""


class Expert(nn.Module):
    """A gated MLP without biases."""

    def __init__(self, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = _linear(gate_FE)
        self.up_proj = _linear(up_FE)
        self.down_proj = _linear(down_EF)
        self.act_fn = activation

    def forward(self, x_TE: Tensor) -> Tensor:
        """activation(gate) * up, projected back: [T, E]."""
        return self.down_proj(self.act_fn(self.gate_proj(x_TE)) * self.up_proj(x_TE))


class SeparateExperts(nn.ModuleList):
    """The experts of a layer, each a module; saved and loaded as transformers' two parameters."""

    def __init__(self, experts: Iterable[Expert]) -> None:
        super().__init__(experts)
        self.register_state_dict_post_hook(_fuse)
        self.register_load_state_dict_pre_hook(_separate)

    @classmethod
    def of(cls, fused: nn.Module) -> "SeparateExperts":
        """The same experts."""
        gates_XFE, downs_XEF = (fused.get_parameter(name).detach() for name in FUSED)
        loaded = getattr(fused.get_parameter(FUSED[0]), "_is_hf_initialized", False)
        activation: Any = fused.act_fn
        experts = cls(
            Expert(gate_FE, up_FE, down_EF, activation)
            for (gate_FE, up_FE), down_EF in zip((both.chunk(2) for both in gates_XFE), downs_XEF, strict=True)
        )
        for parameter in experts.parameters() if loaded else ():
            # What tells weights that were loaded from fresh ones.
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        return experts

    def forward(self, x_TE: Tensor, indices_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        """The sum of what each token's experts make of it, weighted: [T, E]."""
        total_TE = torch.zeros_like(x_TE)
        for index, expert in enumerate(self):
            tokens, places = torch.where(indices_Tk == index)
            if len(tokens):
                made = expert(x_TE[tokens]) * weights_Tk[tokens, places, None]
                total_TE.index_add_(0, tokens, made.to(total_TE.dtype))
        return total_TE


def separate_experts(model: nn.Module) -> None:
    """Put linear layers in the place of experts that transformers holds in one tensor, whose names tell them."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if all(isinstance(getattr(child, fused, None), nn.Parameter) for fused in FUSED):
                setattr(module, name, SeparateExperts.of(child))


def _linear(weight_NK: Tensor) -> nn.Linear:
    rows, columns = weight_NK.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight_NK.contiguous())
    return layer


def _fuse(experts: SeparateExperts, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """Put transformers' two parameters in the place of those of all experts."""
    del metadata
    parts = [
        [state.pop(f"{prefix}{index}.{name}.weight") for name in ("gate_proj", "up_proj", "down_proj")]
        for index in range(len(experts))
    ]
    state[f"{prefix}{FUSED[0]}"] = torch.stack([torch.cat([gate_FE, up_FE]) for gate_FE, up_FE, _ in parts])
    state[f"{prefix}{FUSED[1]}"] = torch.stack([down_EF for _, _, down_EF in parts])


def _separate(experts: SeparateExperts, state: dict[str, Any], prefix: str, *_: object) -> None:
    """The other way round."""
    if f"{prefix}{FUSED[0]}" not in state:
        return
    gates_XFE, downs_XEF = (state.pop(f"{prefix}{name}") for name in FUSED)
    for index in range(len(experts)):
        gate_FE, up_FE = gates_XFE[index].chunk(2)
        state[f"{prefix}{index}.gate_proj.weight"] = gate_FE
        state[f"{prefix}{index}.up_proj.weight"] = up_FE
        state[f"{prefix}{index}.down_proj.weight"] = downs_XEF[index]
