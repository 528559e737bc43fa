"""`engines.html`: what the engine is, how exact its graph is, and what became of each layer's zeros."""

from dataclasses import dataclass
from pathlib import Path

from ...artifacts.page import (
    Column,
    Html,
    LayerTable,
    Verdict,
    document,
    facts,
    layers_by_kind,
    megabytes,
    section,
    table,
)
from ...artifacts.publishing import write_atomically
from ...runtime.engines import EngineFacts
from ..quality import QualityFigures
from ..report import LayerReport
from ..report_page import stored_layers
from .parity import EngineParity
from .sparsity import LayerSparsity

REPORT_FILE = "engines.html"
NOT_RUN = (
    "The engine was built and not run: its graph was computed by ONNX Runtime on a CPU. `make gpu-check` runs engines "
    "on a machine with an NVIDIA GPU."
)


@dataclass(frozen=True)
class EngineReport:
    """One engine: its facts, size, seconds that the build took, the gate's figures, perplexities of its graph, the
    dense layers whose weight lies byte for byte in the file, each of their lines on sparsity, and how all layers are
    stored."""

    engine: EngineFacts
    engine_bytes: int
    build_seconds: float
    parity: EngineParity
    quality: QualityFigures
    unchanged: tuple[str, ...]
    layers: tuple[LayerSparsity, ...]
    stored: tuple[LayerReport, ...]
    run: bool = False
    """Whether the engine was run where it was built."""


def write_engine_report(path: Path, report: EngineReport) -> None:
    """Write the report as HTML."""
    write_atomically(path, _html(report))


def _html(report: EngineReport) -> str:
    engine, quality = report.engine, report.quality
    two_four = sum(layer.two_four for layer in report.layers)
    plugins = len(report.stored) - len(report.layers)
    return document(
        f"{engine.file}: a TensorRT engine",
        Verdict(
            what=f"an engine in {engine.precision} for GPUs of compute capability "
            f"{', '.join(engine.compute_capabilities)}, built by {engine.runtime} {engine.version} in "
            f"{report.build_seconds:.1f} s",
            good=f"perplexity of held-out English text: {quality.perplexity_float32:.4f} in float32, "
            f"{quality.largest:.4f} by the engine's graph in {engine.precision}",
            fast="" if report.run else NOT_RUN,
            big=f"{megabytes(report.engine_bytes)}; {two_four} of {len(report.stored)} projections are 2:4, "
            f"{plugins} are plugins with sparse kernels",
        ),
        section("Settings", facts(_settings(report))),
        _parity(report),
        section("How layers are stored", stored_layers(report.stored)),
        section(
            "Dense layers",
            f"{len(report.unchanged)} of {len(report.layers) + 1} dense matrices (the embedding is one) were found in "
            "the engine's file byte for byte. One that was not may be there in another order. Layers that are plugins "
            "were decoded from the file that was built, and are the model's weights bit for bit.",
            _dense(report),
        ),
    )


def _settings(report: EngineReport) -> dict[str, object]:
    engine, limits = report.engine, report.engine.limits
    return {
        "weights, keys and values": engine.precision,
        "largest step": f"{limits.batch} sequences decoded together, or {limits.tokens} tokens of a prompt",
        "runs in": f"{engine.runtime} {engine.version}, and in no other version",
    }


def _parity(report: EngineReport) -> Html:
    parity, precision = report.parity, report.engine.precision
    return section(
        "Agreement of the graph with torch",
        f"Torch is the model before any pass. {parity.float32.greedy_tokens} tokens that it generates greedily are the "
        "same.",
        table(
            ["logits of", Column("largest difference from torch in float32", True)],
            [
                ("the engine's graph in float32", f"{parity.float32.full_forward:.1e}"),
                (f"the engine's graph in {precision}", f"{parity.in_precision:.1e}"),
                (f"torch in {precision}", f"{parity.torch_in_precision:.1e}"),
            ],
        ),
    )


def _dense(report: EngineReport) -> Html:
    shown = LayerTable[LayerSparsity](
        head=[
            Column("groups of 4", True),
            Column("with more than 2 links", True),
            "found byte for byte",
            "TensorRT counts it as eligible",
            "TensorRT picked a sparse kernel",
        ],
        row=lambda layer: [
            f"{layer.groups:,}",
            f"{layer.illegal_groups:,}",
            "yes" if layer.name in report.unchanged else "no",
            _word(layer.eligible),
            _word(layer.picked),
        ],
        line=lambda group: f"{sum(layer.two_four for layer in group)} of them 2:4 by structure",
        reason=lambda layer: layer.reason,
    )
    return layers_by_kind(report.layers, lambda layer: layer.name, shown)


def _word(verdict: bool | None) -> str:
    """What TensorRT reported; nothing where it reported nothing."""
    return "" if verdict is None else "yes" if verdict else "no"
