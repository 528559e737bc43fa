"""`engines.html`: what the engine is, how exact its graph is, and what became of each layer's zeros."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from ...artifacts.publish import write_atomically
from ...serve.engine.engines import EngineFacts
from ..page import STYLE
from ..quality import QualityFigures
from ..report import LayerReport
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
    carried: tuple[str, ...]
    layers: tuple[LayerSparsity, ...]
    stored: tuple[LayerReport, ...]
    run: bool = False
    """Whether the engine was run where it was built."""


def write_engine_report(path: Path, report: EngineReport) -> None:
    """Write the report as HTML."""
    write_atomically(path, _html(report))


def _html(report: EngineReport) -> str:
    engine, parity, quality = report.engine, report.parity, report.quality
    stored = "\n".join(_stored_row(layer) for layer in report.stored)
    rows = "\n".join(_row(layer, layer.name in report.carried) for layer in report.layers)
    two_four = sum(layer.two_four for layer in report.layers)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hebbline engine report</title><style>{STYLE}</style></head><body>
<h1>Engine report</h1>
<p>{escape(engine.file)}: {engine.runtime} {engine.version}, {engine.precision}, for compute capability
{", ".join(engine.compute_capabilities)}; {report.engine_bytes / 1e6:.2f} MB, built in {report.build_seconds:.1f} s.
{escape("" if report.run else NOT_RUN)}</p>
<h2>Parity of the graph with torch</h2>
<p>In float32 its logits differ by at most {parity.float32.full_forward:.1e}, and {parity.float32.greedy_tokens} greedy
tokens are the same. In {engine.precision} they differ from float32 by {parity.in_precision:.1e}; torch in
{engine.precision} by {parity.torch_in_precision:.1e}. "Torch" is the model before any pass. The perplexity of held-out
English text is {quality.perplexity_float32:.4f} in float32, and {quality.largest:.4f} by the graph in
{engine.precision}.</p>
<h2>How layers are stored</h2>
<table><tr><th>layer</th><th>form</th><th class="number">kB</th><th class="number">dense kB</th><th>reason</th></tr>
{stored}</table>
<h2>Dense layers</h2>
<p>{len(report.carried)} of {len(report.layers) + 1} dense matrices (the embedding is one) lie in the engine byte for
byte; another order of a weight would not be found. {two_four} layers are 2:4 by structure. Layers that are plugins were
decoded from the file that was built, and are the model's weights bit for bit.</p>
<table><tr><th>layer</th><th class="number">groups of 4</th><th class="number">with more than 2 links</th>
<th>byte for byte</th><th>eligible</th><th>sparse tactic</th><th>reason</th></tr>
{rows}</table></body></html>
"""


def _stored_row(layer: LayerReport) -> str:
    sizes = "".join(f'<td class="number">{size / 1e3:,.1f}</td>' for size in (layer.bytes, layer.dense_bytes))
    return f"<tr><td>{escape(layer.name)}</td><td>{layer.layout}</td>{sizes}<td>{escape(layer.reason)}</td></tr>"


def _row(layer: LayerSparsity, carried: bool) -> str:
    figures = "".join(f'<td class="number">{value:,}</td>' for value in (layer.groups, layer.illegal_groups))
    verdicts = "".join(f"<td>{_word(verdict)}</td>" for verdict in (layer.eligible, layer.picked))
    found = "yes" if carried else "not found"
    reason = f'<td class="reason">{escape(layer.reason)}</td>'
    return f"<tr><td>{escape(layer.name)}</td>{figures}<td>{found}</td>{verdicts}{reason}</tr>"


def _word(verdict: bool | None) -> str:
    return "not reported" if verdict is None else "yes" if verdict else "no"
