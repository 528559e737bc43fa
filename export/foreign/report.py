"""`report.json` and `report.html` of a packed file: what became of each layer and why, and how it was verified.

Legend: N out_features, K in_features.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts import LayerFacts
from ..page import STYLE, picture, time_bars
from .comparison import EndToEnd
from .options import PackOptions
from .speed import ModelSpeed


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


def write_reports(directory: Path, report: PackReport, pictures: Mapping[str, NDArray[np.float64]]) -> None:
    """Write `report.json` and `report.html`; `pictures` holds local densities by weight."""
    (directory / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    (directory / "report.html").write_text(_html(report, pictures))


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


def _html(report: PackReport, pictures: Mapping[str, NDArray[np.float64]]) -> str:
    rows = "\n".join(_row(layer, pictures) for layer in report.layers)
    notes = "".join(f"<p>{escape(note)}.</p>" for note in report.notes)
    figures = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{_figure(value)}</td></tr>'
        for name, value in report.end_to_end.to_json().items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hebbline pack report</title><style>{STYLE}</style></head><body>
<h1>Pack report: {escape(report.source)}</h1>
<p><b>{escape(report.speed.words)}.</b></p>
<p>{escape(summary(report))}. Opset {report.opset}, values {report.options.values}, objective
{report.options.objective}.</p>{notes}
<h2>Packed against original, in ONNX Runtime</h2>
<table><tr><th>check</th><th class="number">figure</th></tr>{figures}</table>
<h2>Time saved</h2>{_times(report)}
<h2>Layers</h2>
<p>Pictures show where links are: rows are output nodes, columns input nodes, darker is denser.</p>
<table><tr><th>mask</th><th>layer</th><th class="number">shape</th><th class="number">links</th><th
class="number">density</th><th>layout</th><th class="number">kB</th><th class="number">original kB</th><th
class="number">largest error</th></tr>
{rows}</table></body></html>
"""


def _times(report: PackReport) -> str:
    timed = [layer for layer in report.packed_layers if layer.dense_time is not None and layer.packed_time is not None]
    if not timed:
        return "<p>No layer is packed, so no time is saved.</p>"
    units = {layer.time_unit or "" for layer in timed}
    rows = [(layer.name, layer.dense_time or 0.0, layer.packed_time or 0.0) for layer in timed]
    dense, packed = sum(row[1] for row in rows), sum(row[2] for row in rows)
    unit = ", ".join(sorted(units))
    how = "measured on this machine" if report.options.autotune else unit.removeprefix("us ")
    return (
        f"<p>Of each packed layer, dense above and packed below, {escape(how)}: {dense / packed:.2f} times as fast in "
        f"sum. The whole model: {escape(report.speed.words)}.</p>{time_bars(rows, unit)}"
    )


def _row(layer: PackedLayer, pictures: Mapping[str, NDArray[np.float64]]) -> str:
    density = layer.density
    shape = "&times;".join(map(str, layer.shape))
    numbers = [shape, "" if layer.links is None else f"{layer.links:,}", "" if density is None else f"{density:.4f}"]
    sizes = [f"{layer.bytes / 1e3:,.1f}", f"{layer.stored_bytes / 1e3:,.1f}", _figure(layer.output_error)]
    image = picture(pictures[layer.weight], layer.weight) if layer.weight in pictures else ""
    title = f'{escape(layer.name)}<div class="reason">{escape(layer.op_type)} by {escape(layer.weight)}</div>'
    reason = f'{escape(layer.layout)}<div class="reason">{escape(layer.explained)}</div>'
    cells = "".join(f'<td class="number">{value}</td>' for value in numbers)
    ends = "".join(f'<td class="number">{value}</td>' for value in sizes)
    return f"<tr><td>{image}</td><td>{title}</td>{cells}<td>{reason}</td>{ends}</tr>"


def _figure(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))
