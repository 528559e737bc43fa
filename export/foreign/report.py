"""What packing reports: what became of each layer and why, and how it was verified. `report_page` writes it.

Legend: N out_features, K in_features.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...artifacts import LayerFacts
from .comparison import EndToEnd
from .options import PackOptions
from .speed import ModelSpeed

_FIGURES = re.compile(r"\([^)]*\)|[\d.,x]*\d[\d.,x]*|'[^']*'")
"""What tells two reasons of one kind apart: numbers, what stands in brackets, and names."""


@dataclass(frozen=True)
class PackedLayer:
    """One product with a constant weight.

    `name` is its node and `weight` the tensor it multiplies by; shape and links are None where the weight was not
    read. `layout` is "dense" where it was left. `bytes` and `stored_bytes` count its weight in the packed and in the
    original file; a weight that an earlier layer already has counts there, and `shared_with` names that layer.
    `dense_time`, `packed_time` and `time_unit` say what the choice was made by. `weight_error` and `output_error` are
    the largest over the largest magnitude; None where the layer was left. `largest_activation` is that of a calibrated
    layer, which cuts off what is larger. `weight_shape` is that of a weight that is no linear layer's.
    """

    name: str
    weight: str
    op_type: str
    out_features: int | None
    in_features: int | None
    links: int | None
    layout: str
    values: str
    bytes: int
    stored_bytes: int
    reason: str
    shared_with: str | None = None
    dense_time: float | None = None
    packed_time: float | None = None
    time_unit: str | None = None
    weight_error: float | None = None
    output_error: float | None = None
    largest_activation: float | None = None
    weight_shape: tuple[int, ...] | None = None

    @property
    def density(self) -> float | None:
        """Links over possible links."""
        if self.links is None or not self.shape or 0 in self.shape:
            return None
        return self.links / math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Output and input features of a linear layer, the tensor's own shape of another weight, () where unknown."""
        if self.out_features is None or self.in_features is None:
            return self.weight_shape or ()
        return self.out_features, self.in_features

    @property
    def explained(self) -> str:
        """The reason, and the range that a calibrated layer rounds its input in."""
        if self.largest_activation is None:
            return self.reason
        return f"{self.reason}; activations are rounded up to a magnitude of {self.largest_activation:.3g}"

    @property
    def packed(self) -> bool:
        """Whether the layer was packed."""
        return self.layout != "dense"

    def as_left(self, reason: str) -> "PackedLayer":
        """The line of this layer where it is not packed after all, for that reason; itself where it is left."""
        if not self.packed:
            return self
        size = self.stored_bytes
        return replace(
            self,
            layout="dense",
            values="as stored",
            bytes=size,
            reason=f"left: {reason}",
            weight_error=None,
            output_error=None,
            largest_activation=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The layer as plain values."""
        return asdict(self) | {"density": self.density}


@dataclass(frozen=True)
class PackReport:
    """The whole run. `file_bytes` and `original_bytes` count the ONNX file with its external data."""

    source: str
    opset: int
    options: PackOptions
    layers: list[PackedLayer]
    end_to_end: EndToEnd
    speed: ModelSpeed
    file_bytes: int
    original_bytes: int
    notes: list[str]

    @property
    def packed_layers(self) -> list[PackedLayer]:
        """Those that were packed."""
        return [layer for layer in self.layers if layer.packed]

    def layer_facts(self) -> tuple[LayerFacts, ...]:
        """The manifest's lines on the layers whose weights were read."""
        return tuple(
            LayerFacts(layer.name, layer.out_features, layer.in_features, layer.links, layer.layout)
            for layer in self.layers
            if layer.out_features is not None and layer.in_features is not None and layer.links is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        speed = self.speed.to_json()
        return asdict(self) | {"layers": [layer.to_dict() for layer in self.layers], "speed": speed}


def grouped(layers: Sequence[PackedLayer]) -> list[list[PackedLayer]]:
    """The layers in order, where those that are left for the same reason, figures aside, are together with the first
    of them."""
    groups: dict[object, list[PackedLayer]] = {}
    for place, layer in enumerate(layers):
        key: object = place if layer.packed else (layer.op_type, _FIGURES.sub("", layer.reason))
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def densities(layers: Sequence[PackedLayer]) -> str:
    """The density of a layer, or the least and the greatest of several."""
    known = sorted(layer.density for layer in layers if layer.density is not None)
    if not known:
        return ""
    return f"{known[0]:.4f}" if known[0] == known[-1] else f"{known[0]:.4f} to {known[-1]:.4f}"


def summary(report: PackReport) -> str:
    """One sentence on the outcome."""
    packed, layers = len(report.packed_layers), len(report.layers)
    return (
        f"{packed} of {layers} layers with constant weights are packed; the ONNX files take "
        f"{report.file_bytes / 1e6:.2f} MB, the original {report.original_bytes / 1e6:.2f} MB"
    )


def speed(report: PackReport) -> str | None:
    """What is gained in time, in a sentence that says where sparse does not pay; None where no time is known."""
    timed = [layer for layer in report.layers if layer.dense_time and layer.packed_time]
    if not timed:
        return None
    how = " and ".join(sorted({(layer.time_unit or "").removeprefix("us ") for layer in timed}))
    left = sum(not layer.packed for layer in timed)
    if left == len(timed):
        return f"{how}: sparse does not pay, and all {left} layers with zeros are left dense"
    dense = sum(layer.dense_time or 0.0 for layer in timed)
    stored = sum((layer.packed_time if layer.packed else layer.dense_time) or 0.0 for layer in timed)
    words = f"{how}: the {len(timed)} layers with zeros run {dense / stored:.2f} times as fast as dense float32 in sum"
    if left:
        words += f"; {left} of them are left dense, where sparse does not pay or takes more bytes"
    return words if dense >= stored else f"{words}; sparse does not pay for this model"
