"""What a pass did to each layer, and why it did no more."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder

Masks = Mapping[str, NDArray[np.bool_]]
"""The mask (bool [out_features, in_features]) of each sparse linear layer, by its name in the model."""


@dataclass(frozen=True)
class LayerChange:
    """One linear layer before and after. Shapes are (out_features, in_features).

    `neurons_removed` counts the nodes of the model that left, of those that the layer reads or writes. `fit_*` is the
    share of links that have the structure which `permute` orders for, from 0 to 1; None in other passes.
    """

    name: str
    shape_before: tuple[int, int]
    shape_after: tuple[int, int]
    links_before: int
    links_after: int
    reason: str
    neurons_removed: int = 0
    fit_before: float | None = None
    fit_after: float | None = None

    @property
    def is_changed(self) -> bool:
        """Whether the layer has another size, fewer links, or another fit than before."""
        sizes = (self.shape_before, self.links_before) != (self.shape_after, self.links_after)
        return sizes or self.neurons_removed > 0 or self.fit_before != self.fit_after


@dataclass(frozen=True)
class PassReport:
    """A pass over a whole model; `notes` say what it cannot do and why, `fit_*` is that of all layers together."""

    name: str
    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...]
    fit_before: float | None = None
    fit_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """What the pass did, in one line."""
        if self.fit_before is not None and self.fit_after is not None:
            return f"{self.name}: {self.fit_before:.2%} fit before, {self.fit_after:.2%} after"
        links = sum(layer.links_before - layer.links_after for layer in self.layers)
        smaller = sum(layer.shape_before != layer.shape_after for layer in self.layers)
        return f"{self.name}: {links:,} links without effect left, {smaller} of {len(self.layers)} layers are smaller"


@dataclass(frozen=True)
class Passed:
    """A model that computes what it did before, its masks, and the report on how it was changed.

    Parameters that did not change are shared with the model that the pass was given, which is left as it was.
    """

    model: PreTrainedModel
    decoder: Decoder
    masks: dict[str, NDArray[np.bool_]]
    report: PassReport


def shape_of(mask_NK: NDArray[np.bool_]) -> tuple[int, int]:
    """(out_features, in_features)."""
    return mask_NK.shape[0], mask_NK.shape[1]
