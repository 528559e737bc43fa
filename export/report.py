"""`report.json` and `report.html`: what became of each layer and why, and how exact the result is.

Legend: N out_features, K in_features.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .forecast import Forecast
from .layouts import Choice
from .page import STYLE, local_density, picture
from .passes.report import LayerChange, PassReport
from .quality import QualityFigures
from .verify import ParityFigures


@dataclass(frozen=True)
class LayerReport:
    """One projection: its size, how it is stored, and the reason for the choice."""

    name: str
    out_features: int
    in_features: int
    links: int
    density: float
    layout: str
    bytes: int
    dense_bytes: int
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """The whole export.

    `masks` says where they came from; `file_bytes` counts the ONNX files, `dense_bytes` those of the same model dense;
    `passes` are those that changed the model before it was packed; `quality` is what rounded values cost; `forecast` is
    the predicted speed, None where there is no op library to predict with.
    """

    source: str
    masks: str
    layers: list[LayerReport]
    parity: ParityFigures
    file_bytes: int
    dense_bytes: int
    passes: tuple[PassReport, ...] = ()
    quality: QualityFigures | None = None
    engine_layers: tuple[LayerReport, ...] = ()
    """How an engine that comes with the ONNX holds each projection."""
    forecast: Forecast | None = None

    @property
    def density(self) -> float:
        """Links over possible links, of all projections together."""
        possible = sum(layer.out_features * layer.in_features for layer in self.layers)
        return sum(layer.links for layer in self.layers) / possible

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        quality = None if self.quality is None else self.quality.to_json()
        return asdict(self) | {"density": self.density, "quality": quality}


def layer_report(name: str, mask_NK: NDArray[np.bool_], choice: Choice) -> LayerReport:
    """The report's line on one layer."""
    out_features, in_features = mask_NK.shape
    links = int(np.count_nonzero(mask_NK))
    return LayerReport(
        name=name,
        out_features=out_features,
        in_features=in_features,
        links=links,
        density=links / mask_NK.size,
        layout=choice.layout.name if choice.layout is not None else "dense",
        bytes=choice.packed_bytes,
        dense_bytes=choice.dense_bytes,
        reason=choice.reason,
    )


def write_reports(directory: Path, report: ExportReport, masks: Mapping[str, NDArray[np.bool_]]) -> None:
    """Write `report.json` and `report.html`."""
    (directory / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    (directory / "report.html").write_text(_html(report, masks))


def _html(report: ExportReport, masks: Mapping[str, NDArray[np.bool_]]) -> str:
    rows = "\n".join(_row(layer, masks[layer.name]) for layer in report.layers)
    parity = "\n".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:g}</td></tr>'
        for name, value in report.parity.to_json().items()
    )
    passes = "".join(_pass_section(one) for one in report.passes)
    quality = "" if report.quality is None else _quality_section(report.quality)
    speed = "" if report.forecast is None else f"<p>Speed {escape(report.forecast.words)}.</p>"
    engine = _engine_section(report.engine_layers) if report.engine_layers else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hebbline export report</title><style>{STYLE}</style></head><body>
<h1>Export report</h1>
<p>{escape(report.masks)}. {len(report.layers)} projections hold {report.density:.1%} of their possible links. The ONNX
files take {report.file_bytes / 1e6:.2f} MB; the same model dense would take {report.dense_bytes / 1e6:.2f} MB.</p>
{speed}{quality}<h2>Parity with torch</h2> <table><tr><th>check</th><th class="number">figure</th></tr>{parity}</table>
<h2>Layers</h2>
<p>Pictures show where links are: rows are output nodes, columns input nodes, darker is denser.</p>
<table><tr><th>mask</th><th>layer</th><th class="number">shape</th><th class="number">links</th><th
class="number">density</th> <th>layout</th><th class="number">kB</th><th class="number">dense kB</th></tr>
{rows}</table>{engine}{passes}</body></html>
"""


def _quality_section(quality: QualityFigures) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:.4f}</td></tr>'
        for name, value in {"torch, float32": quality.perplexity_float32, **quality.perplexity}.items()
    )
    return f"""<h2>Cost of rounding</h2> <p>The projections have {escape(quality.values)} values; of
model.hebbline.onnx, lm_head is {escape(quality.lm_head)}, keys and values {escape(quality.kv_cache)}. On
{quality.tokens:,} tokens of held-out English text the perplexity is {quality.cost:.4f} times that of float32. The
parity below is that of the same graphs with exact values.</p>
<table><tr><th>graph</th><th class="number">perplexity</th></tr>{rows}</table>"""


def _engine_section(layers: tuple[LayerReport, ...]) -> str:
    """How the engine holds each layer, in 16 bit, and why."""
    rows = "\n".join(
        f'<tr><td>{escape(layer.name)}</td><td>{layer.layout}<div class="reason">{escape(layer.reason)}</div></td>'
        f'<td class="number">{layer.bytes / 1e3:,.1f}</td><td class="number">{layer.dense_bytes / 1e3:,.1f}</td></tr>'
        for layer in layers
    )
    return f"""<h2>Layers of the engine</h2><p>engines.html says what became of them.</p><table><tr><th>layer</th>
<th>form</th><th class="number">kB</th><th class="number">dense kB</th></tr>
{rows}</table>"""


def _pass_section(one: PassReport) -> str:
    """What a pass did and could not do, and its line on each layer."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in one.notes)
    rows = "\n".join(_pass_row(layer) for layer in one.layers)
    return f"""<h2>{escape(one.summary)}</h2><ul>{notes}</ul><table><tr><th>layer</th><th class="number">shape</th><th
class="number">links</th><th class="number">fit</th></tr>
{rows}</table>"""


def _pass_row(layer: LayerChange) -> str:
    shapes = [f"{rows}&times;{columns}" for rows, columns in (layer.shape_before, layer.shape_after)]
    fits = [f"{fit:.2%}" for fit in (layer.fit_before, layer.fit_after) if fit is not None]
    pairs = [shapes, [f"{layer.links_before:,}", f"{layer.links_after:,}"], fits]
    cells = "".join(f'<td class="number">{" &rarr; ".join(dict.fromkeys(pair))}</td>' for pair in pairs)
    return f'<tr><td>{escape(layer.name)}<div class="reason">{escape(layer.reason)}</div></td>{cells}</tr>'


def _row(layer: LayerReport, mask_NK: NDArray[np.bool_]) -> str:
    figures = [
        f"{layer.out_features}&times;{layer.in_features}",
        f"{layer.links:,}",
        f"{layer.density:.4f}",
    ]
    sizes = [f"{layer.bytes / 1e3:,.1f}", f"{layer.dense_bytes / 1e3:,.1f}"]
    cells = "".join(f'<td class="number">{value}</td>' for value in figures)
    cells += f'<td>{layer.layout}<div class="reason">{escape(layer.reason)}</div></td>'
    cells += "".join(f'<td class="number">{value}</td>' for value in sizes)
    image = picture(local_density(mask_NK), layer.name)
    return f"<tr><td>{image}</td><td>{escape(layer.name)}</td>{cells}</tr>"
