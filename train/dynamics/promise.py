"""The density that a model's training is to end at, remembered until the model is published.

A density that falls is reached at the last topology update. A loop that ends before that leaves a denser model than it
was asked for, and only the loop knows where it ends: so this is looked at where the model is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn


@dataclass(frozen=True)
class Promise:
    """The links that each layer is to have, by name, and the step of the update after which it has them."""

    links: Mapping[str, int]
    step: int


_promises: "WeakKeyDictionary[nn.Module, Promise]" = WeakKeyDictionary()


def promise(model: nn.Module, what: Promise | None) -> None:
    """Remember what the training of a model is to come to, in place of what was remembered of it; None for nothing."""
    if what is None:
        _promises.pop(model, None)
    else:
        _promises[model] = what


def shortfall(model: nn.Module, masks: Mapping[str, Tensor]) -> str | None:
    """What is missing of what was promised of a model, or of a part of it; None where nothing is.

    Args:
        model: as the `Sparsifier` had it, or one that contains that.
        masks: bool [N, K] by layer name, as in `model`.
    """
    for prefix, part in model.named_modules():
        found = _promises.get(part)
        for layer, links in found.links.items() if found else ():
            mask_NK = masks.get(f"{prefix}.{layer}" if prefix else layer)
            if found and mask_NK is not None and int(mask_NK.sum()) != links:
                density, asked = int(mask_NK.sum()) / mask_NK.numel(), links / mask_NK.numel()
                return (
                    f"layer '{layer}' has a density of {density:.4g}, not the {asked:.4g} that was asked for: it falls "
                    f"until the update at step {found.step}, which training has not reached"
                )
    return None
