"""Layers that a checkpoint stores transposed, as linear layers like all others.

Legend: N out_features, K in_features.

GPT-2's `Conv1D` multiplies by a weight [K, N]. Everything here is about weights [N, K]; so such a layer becomes an
`nn.Linear` once, on reading, and only its state dict has the weight as the checkpoint does: what is saved is loaded by
transformers as it is.
"""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .experts import separate_experts


class StoredTransposed(nn.Linear):
    """A linear layer, weight [N, K], that is saved and loaded as [K, N]."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A view of the parameter where the variable itself is not asked for; shared memory would not be saved.
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].T.contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}weight"
        if name in state_dict:
            state_dict[name] = state_dict[name].T
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def of(cls, layer: Conv1D) -> "StoredTransposed":
        """The same layer, with the same bias, and the weight turned."""
        in_features, out_features = layer.weight.shape
        linear = cls(in_features, out_features, device="meta")
        loaded = getattr(layer.weight, "_is_hf_initialized", False)
        linear.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=layer.weight.requires_grad)
        if loaded:
            # What tells weights that were loaded from fresh ones.
            linear.weight._is_hf_initialized = True  # type: ignore[attr-defined]
        linear.bias = layer.bias
        return linear


def use_linear_layers(model: nn.Module) -> None:
    """Put linear layers in the place of all that are stored transposed, or several in one tensor. A model without any
    is left as it is."""
    separate_experts(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                setattr(module, name, StoredTransposed.of(child))
