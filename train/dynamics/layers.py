"""What the weights of a model's linear layers must be, and what they tell of their past.

Legend: N out_features, K in_features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...artifacts import InputError
from .places import Place, parameter_of
from .sharding import whole

_FEWEST_ZEROS = 0.01
"""Fresh weights are drawn from densities: a share of exact zeros above this one was put there."""


def check_weights(model: nn.Module, places: Mapping[str, Place]) -> None:
    """Refuse layers whose weight cannot have a graph of its own.

    Raises:
        InputError: a layer's weight is computed from other parameters, frozen, or that of another of the layers too, or
            it is split over processes and no Linear's.
    """
    owners: dict[tuple[int, int | None], str] = {}
    for name, place in places.items():
        weight = parameter_of(model, place)
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
        if isinstance(weight, DTensor) and not (place.plain and weight.ndim == len(place.shape)):
            raise InputError(f"layer '{name}' is split over processes, which Linear layers alone may be here")
        if (owner := owners.setdefault((id(weight), place.first), name)) != name:
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
