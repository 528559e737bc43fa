"""`report.html` of a packed file.

Legend: N out_features, K in_features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...artifacts.page import (
    Column,
    Html,
    LayerTable,
    Verdict,
    document,
    facts,
    gallery,
    kind_of,
    layers_by_kind,
    megabytes,
    picture,
    section,
    sentence,
    span,
    table,
    time_bars,
)
from .comparison import EndToEnd
from .report import PackedLayer, PackReport, summary

Pictures = Mapping[str, NDArray[np.float64]]
_OBJECTIVES = {
    "latency": "latency, one token at a time",
    "throughput": "throughput, many tokens at a time",
    "size": "size, the fewest bytes",
}
COMPARED = {
    "difference": "the packed file in plain ONNX Runtime, without its fusions",
    "default_difference": "the packed file in plain ONNX Runtime, as it runs by default",
    "library_difference": "the packed file with the operator library",
    "noise": "for comparison: the original with and without ONNX Runtime's fusions",
}
"""What each difference of `EndToEnd` is between, in words."""


def pack_page(report: PackReport, pictures: Pictures) -> str:
    """The page as HTML; `pictures` holds local densities by weight."""
    packed = sum(layer.packed for layer in report.layers)
    return document(
        f"{report.source}, packed",
        Verdict(
            what=f"an ONNX file of which {packed} of {len(report.layers)} layers with constant weights are packed"
            + (": they store their non-zero weights only" if packed else ""),
            good=_agreement(report),
            fast=report.speed.words,
            big=summary(report).rpartition("; ")[2],
        ),
        section(
            "Settings",
            facts(_settings(report)),
            *map(sentence, report.notes),
        ),
        _comparison(report.end_to_end),
        section("Time of the packed layers", *_times(report)),
        gallery({layer.name: pictures[layer.weight] for layer in report.packed_layers if layer.weight in pictures}),
        section("Layers", _layers(report.layers, pictures)),
    )


def _settings(report: PackReport) -> dict[str, object]:
    options = report.options
    return {
        "opset": report.opset,
        "values": f"{options.values}, {'exact' if options.values == 'float32' else 'rounded'}",
        "activations rounded by": options.calibration,
        "objective": _OBJECTIVES[options.objective],
        "layouts chosen by": "times measured on this machine" if options.autotune else "predicted times",
        "predicted for": options.for_isa,
        "left if it gains less than": f"{options.min_speedup:g} times" if options.min_speedup else None,
    }


def _agreement(report: PackReport) -> str:
    found = report.end_to_end
    if found.difference is None:
        return f"not compared: {found.note}"
    worst = max(
        off for off in (found.difference, found.default_difference, found.library_difference) if off is not None
    )
    kept = (
        "weights as they were" if report.options.values == "float32" else f"weights rounded to {report.options.values}"
    )
    return (
        f"{kept}; outputs differ from the original's by at most {worst:.1e} of their largest magnitude, over "
        f"{found.outputs:,} numbers"
    )


def _comparison(found: EndToEnd) -> Html:
    values = found.to_json()
    rows = [
        (words, f"{values[name]:.1e}", _allowed(found, name))
        for name, words in COMPARED.items()
        if values[name] is not None
    ]
    return section(
        "Agreement with the original",
        f"Both were run on the same inputs; {found.note}. A difference is the largest of any output over that output's "
        "largest magnitude.",
        table(["compared", Column("largest difference", True), Column("allowed", True)], rows),
    )


def _allowed(found: EndToEnd, name: str) -> str:
    return "" if name != "difference" else "reported only" if found.allowed is None else f"{found.allowed:.1e}"


def _times(report: PackReport) -> list[str]:
    """Bars for each kind of layer, those that were measured apart from those that were predicted."""
    timed: dict[str, dict[str, list[PackedLayer]]] = {}
    for layer in report.packed_layers:
        if layer.dense_time is not None and layer.packed_time is not None:
            how = (layer.time_unit or "").removeprefix("us ")
            timed.setdefault(how, {}).setdefault(kind_of(layer.name), []).append(layer)
    return [part for how, kinds in sorted(timed.items()) for part in _bars(how, kinds)]


def _bars(how: str, kinds: Mapping[str, Sequence[PackedLayer]]) -> list[str]:
    rows = [
        (
            layers[0].name if len(layers) == 1 else f"{kind} ({len(layers)} layers together)",
            sum(layer.dense_time or 0.0 for layer in layers),
            sum(layer.packed_time or 0.0 for layer in layers),
        )
        for kind, layers in kinds.items()
    ]
    dense, packed = sum(row[1] for row in rows), sum(row[2] for row in rows)
    where = "measured on this machine" if how == "measured" else how
    return [
        f"Dense above and packed below, {where}: together they are {dense / packed:.2f} times as fast.",
        time_bars(rows, "\u00b5s"),
    ]


def _layers(layers: Sequence[PackedLayer], pictures: Pictures) -> Html:
    shown = LayerTable[PackedLayer](
        head=[
            "mask",
            "operator",
            Column("shape", True),
            Column("links", True),
            Column("density", True),
            "layout",
            Column("bytes", True),
            Column("before", True),
            Column("largest error", True),
        ],
        row=lambda layer: _row(layer, pictures),
        line=_line,
        reason=lambda layer: layer.explained,
    )
    return layers_by_kind(layers, lambda layer: layer.name, shown)


def _row(layer: PackedLayer, pictures: Pictures) -> list[object]:
    return [
        picture(pictures[layer.weight], layer.weight) if layer.weight in pictures else None,
        f"{layer.op_type} by {layer.weight}",
        "\u00d7".join(map(str, layer.shape)),
        None if layer.links is None else f"{layer.links:,}",
        None if layer.density is None else f"{layer.density:.4f}",
        layer.layout,
        megabytes(layer.bytes) if layer.bytes or layer.stored_bytes else None,
        megabytes(layer.stored_bytes) if layer.bytes or layer.stored_bytes else None,
        None if layer.output_error is None else f"{layer.output_error:.1e}",
    ]


def _line(layers: Sequence[PackedLayer]) -> str:
    """What the layers of a kind have in common."""
    packed = sum(layer.packed for layer in layers)
    state = "packed" if packed == len(layers) else "left as they were" if not packed else f"{packed} of them packed"
    shapes = sorted({layer.shape for layer in layers if layer.shape})
    size = " and ".join("\u00d7".join(map(str, shape)) for shape in shapes[:2])
    found = [layer.density for layer in layers if layer.density is not None]
    density = f"density {span(found, '.3f')}" if found else ""
    total, stored = sum(layer.bytes for layer in layers), sum(layer.stored_bytes for layer in layers)
    bytes_ = f"{megabytes(total)}, before {megabytes(stored)}" if packed else ""
    return ", ".join(part for part in (size, density, f"{state}: {bytes_}" if bytes_ else state) if part)
