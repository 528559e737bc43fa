"""`report.html` of an export.

Legend: N out_features, K in_features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..artifacts.page import (
    Column,
    Html,
    LayerTable,
    Verdict,
    document,
    facts,
    gallery,
    layers_by_kind,
    local_density,
    megabytes,
    picture,
    section,
    section_of,
    sentence,
    span,
    table,
)
from .passes.report import LayerChange, PassReport
from .quality import QualityFigures
from .report import ExportReport, LayerReport
from .verify import CHECKS, ParityFigures

Masks = Mapping[str, NDArray[np.bool_]]


def export_page(report: ExportReport, masks: Masks) -> str:
    """The page as HTML; `masks` are those of the projections."""
    densities = {layer.name: local_density(masks[layer.name]) for layer in report.layers}
    return document(
        f"{report.source} as sparse ONNX",
        _verdict(report),
        section("Settings", facts(_settings(report))),
        *(() if report.quality is None else (_quality(report.quality),)),
        _parity(report.parity),
        gallery(densities),
        section("Layers", _layers(report.layers, densities)),
        section_of(
            stored_layers(report.engine_layers),
            "Layers of the TensorRT engine",
            "How the engine's file holds them, in 16 bits a value; engines.html says what TensorRT made of them.",
        ),
        *(_pass(one) for one in report.passes),
    )


def _verdict(report: ExportReport) -> Verdict:
    quality, parity = report.quality, report.parity
    exact = f"the weights are the model's, bit for bit; compared with torch, {parity}"
    beside = f"{sentence(report.beside_dense)} " if report.beside_dense else ""
    return Verdict(
        what=f"an artifact of {len(report.layers)} sparse projections that have {report.density:.1%} of their possible "
        f"links. {report.masks}",
        good=beside + sentence(exact if quality is None else quality.compared("as exported")),
        fast=_speed(report),
        big=f"{megabytes(report.file_bytes)} of ONNX files; dense they would have {megabytes(report.dense_bytes)}",
    )


def _settings(report: ExportReport) -> dict[str, object]:
    stored = report.stored
    return {
        "weights of the projections": _type(stored.values),
        "output layer in model.hebbline.onnx": _type(stored.lm_head),
        "keys and values in model.hebbline.onnx": _type(stored.kv_cache),
        "before packing": ", ".join(one.name for one in report.passes) or "the model was left as it is",
        "layouts chosen for": report.objective
        if report.forecast is None
        else f"{report.objective}, with {report.forecast.isa}",
    }


def _type(name: str) -> str:
    return f"{name}, exact" if name == "float32" else f"{name}, rounded"


def _speed(report: ExportReport) -> str:
    """What was measured, and what the cost model predicts, which may be for another machine."""
    known = [] if report.speed is None else [report.speed.words]
    if report.forecast is not None:
        known.append(report.forecast.words)
    return ". ".join(sentence(words).removesuffix(".") for words in known)


def _quality(quality: QualityFigures) -> Html:
    found = {"torch, float32": quality.perplexity_float32, **quality.perplexity}
    return section(
        "What rounding costs",
        f"The projections have {quality.values} values. In model.hebbline.onnx the output layer is {quality.lm_head}, "
        f"keys and values are {quality.kv_cache}. Perplexity is that of {quality.tokens:,} tokens of Python's own "
        "documentation; lower is better.",
        table(
            ["graph", Column("perplexity", True)],
            [(name, f"{perplexity:.4f}") for name, perplexity in found.items()],
        ),
    )


def _parity(parity: ParityFigures) -> Html:
    found = parity.to_json()
    names = [name for name in CHECKS if name != "far" or found["far"]]
    skipped = (
        f" {parity.prompts_skipped} prompts were set aside, because torch's own two best tokens are too close there to "
        "tell one from the other."
        if parity.prompts_skipped
        else ""
    )
    return section(
        "Agreement with torch",
        f"The graphs with exact values were run by ONNX Runtime, on sequences of up to {parity.positions} tokens. "
        f"{parity.greedy_tokens} of {parity.greedy_tokens} tokens that torch generates greedily are the same.{skipped}",
        table(
            ["compared", Column("largest difference", True), Column("allowed", True)],
            [(CHECKS[name], f"{found[name]:.1e}", f"{parity.logit_tolerance:.1e}") for name in names],
        ),
    )


def _layers(layers: Sequence[LayerReport], densities: Mapping[str, NDArray[np.float64]]) -> Html:
    shown = LayerTable[LayerReport](
        head=[
            "mask",
            Column("shape", True),
            Column("links", True),
            Column("density", True),
            "layout",
            Column("bytes", True),
            Column("dense", True),
        ],
        row=lambda layer: [
            picture(densities[layer.name], layer.name),
            f"{layer.out_features}\u00d7{layer.in_features}",
            f"{layer.links:,}",
            f"{layer.density:.4f}",
            layer.layout,
            megabytes(layer.bytes),
            megabytes(layer.dense_bytes),
        ],
        line=_line,
        reason=lambda layer: layer.reason,
    )
    return layers_by_kind(layers, lambda layer: layer.name, shown)


def _line(layers: Sequence[LayerReport]) -> str:
    """What the layers of a kind have in common."""
    shapes = sorted({(layer.out_features, layer.in_features) for layer in layers})
    size = " and ".join(f"{rows}\u00d7{columns}" for rows, columns in shapes)
    layouts = " and ".join(sorted({layer.layout for layer in layers}))
    density = span((layer.density for layer in layers), ".3f")
    return f"{size}, density {density}, {layouts}: {_bytes(layers)}"


def _bytes(layers: Sequence[LayerReport]) -> str:
    total, dense = sum(layer.bytes for layer in layers), sum(layer.dense_bytes for layer in layers)
    return megabytes(total) if total == dense else f"{megabytes(total)}, dense {megabytes(dense)}"


def stored_layers(layers: Sequence[LayerReport]) -> Html:
    """How an engine holds each layer, in 16 bit, and why."""
    shown = LayerTable[LayerReport](
        head=["form", Column("bytes", True), Column("dense", True)],
        row=lambda layer: [layer.layout, megabytes(layer.bytes), megabytes(layer.dense_bytes)],
        line=_line,
        reason=lambda layer: layer.reason,
    )
    return layers_by_kind(layers, lambda layer: layer.name, shown)


def _pass(one: PassReport) -> Html:
    """What a pass did and could not do, and its line on each layer that it changed."""
    changed = [layer for layer in one.layers if layer.is_changed]
    same = len(one.layers) - len(changed)
    shown = LayerTable[LayerChange](
        head=[Column("shape", True), Column("links", True), Column("fit", True)],
        row=_change,
        line=lambda layers: f"{sum(layer.links_after for layer in layers):,} links",
        reason=lambda layer: layer.reason,
    )
    return section(
        f"Pass {one.summary}",
        *[sentence(note) for note in one.notes if note],
        f"{same} of {len(one.layers)} layers have the size, the links and the fit that they had." if same else "",
        layers_by_kind(changed, lambda layer: layer.name, shown),
    )


def _change(layer: LayerChange) -> list[str]:
    shapes = [f"{rows}\u00d7{columns}" for rows, columns in (layer.shape_before, layer.shape_after)]
    links = [f"{layer.links_before:,}", f"{layer.links_after:,}"]
    fits = [f"{fit:.2%}" for fit in (layer.fit_before, layer.fit_after) if fit is not None]
    return [" \u2192 ".join(dict.fromkeys(pair)) for pair in (shapes, links, fits)]
