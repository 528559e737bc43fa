"""What the weights of a model's linear layers must be, and what they tell of their past.

Legend: N out_features, K in_features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...artifacts import InputError
from .sharding import whole

_FEWEST_ZEROS = 0.01
"""Fresh weights are drawn from densities: a share of exact zeros above this one was put there."""


def check_weights(layers: Mapping[str, nn.Linear]) -> None:
    """Refuse layers whose weight cannot have a graph of its own.

    Raises:
        InputError: a layer's weight is computed from other parameters, frozen, or that of another of the layers too.
    """
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None:
            raise InputError(
                f"layer '{name}' computes its weight from other parameters, as under weight_norm: remove the "
                "parametrization, or name the layer in sparsity.exclude"
            )
        if not weight.requires_grad:
            raise InputError(
                f"layer '{name}' is frozen (requires_grad is False): unfreeze its weight, or name the layer in "
                "sparsity.exclude"
            )
        if (owner := owners.setdefault(id(weight), name)) != name:
            raise InputError(
                f"layers '{owner}' and '{name}' share a weight, which has one graph: name one of them in "
                "sparsity.exclude, and it has the links of the other"
            )


@torch.no_grad()
def is_trained(weight_NK: Tensor) -> bool:
    """Whether a weight is not fresh: transformers has loaded it, or some of it, but not all, is exactly 0.

    A weight that was trained dense in a loop of one's own cannot be told from a fresh one. All processes must call it.
    """
    if getattr(weight_NK, "_is_hf_initialized", False):
        return True
    weight_NK = whole(weight_NK)
    zeros = weight_NK.numel() - int(weight_NK.count_nonzero())
    return _FEWEST_ZEROS * weight_NK.numel() < zeros < weight_NK.numel()
