"""From a model directory to a published artifact: build, verify, report, publish."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

import onnxruntime

from ..artifacts import InputError, KvFormat, Manifest, publish
from ..artifacts.page import write_report
from ..artifacts.publishing import check_target
from ..artifacts.text_cost import read_text_costs, read_trained_perplexity
from ..artifacts.tokenizer_files import publish_tokenizer
from ..kernels import register
from ..kernels.cost import check_isa
from ..runtime.onnxruntime import KERNELS_MODEL_FILE, MODEL_FILE
from ..runtime.varlen import VarlenRunner
from .forecast import forecast
from .graph import (
    AttentionForm,
    HeadForm,
    SourceModel,
    StockAttention,
    VarlenAttention,
    WeightFile,
    build_decoder,
    open_source,
    save_graph,
)
from .layouts import Aim
from .layouts.choose import FLOAT32_BYTES, Objective
from .passes import PassOptions, run_passes
from .passes.report import PassReport
from .piecewise import open_portable
from .quality import Rounding, measure_quality, text_windows
from .reference import TorchReference
from .report import ExportReport, layer_report
from .report_page import export_page
from .shortlist import check_shortlist
from .speed import Stopwatch, few_packings, takes_few_packings
from .steps import AnyRunner
from .verify import ParityFigures, check_against, check_context

DATA_FILE = MODEL_FILE + ".data"
"""The weights of all graphs of an artifact."""
NO_PASSES = PassOptions()
_CHECKED_FILE = "checked.onnx"
_PARITY_SLOTS = 3

logger = logging.getLogger(__name__)


def export_model(
    model_directory: str | Path,
    out: str | Path,
    progress: Callable[[str], None] = lambda stage: None,
    *,
    values: str = "float32",
    lm_head: Literal["float32", "int8"] = "float32",
    kv_cache: KvFormat = "float32",
    passes: PassOptions = NO_PASSES,
    for_isa: str | None = None,
    objective: Objective = "latency",
) -> ExportReport:
    """Export a model directory to sparse ONNX, and publish it where it agrees with torch.

    The artifact has two graphs over one file of weights: one of stock ops for any ONNX Runtime, and one for the op
    library of this installation. Both must pass the parity gate. Without the library there is only the first, since
    nothing is published that was not run; a warning says so.

    Args:
        model_directory: a Hugging Face directory with tokenizer; masks are those stored in it, else the non-zero
        weights. out: where to publish the artifact. progress: told each stage as it begins. values: how the weights of
        sparse projections are stored, a name of `layouts.VALUE_TYPES`; anything but "float32" rounds weights and
        activations, and its cost in perplexity is in the report. lm_head: "int8" makes lm_head of the second graph
        several times faster and the artifact larger by a byte a weight of it; the largest logits of a token stay exact,
        the others do not (see `graph.head`). kv_cache: how the second graph keeps keys and values unless its server is
        told otherwise; "float32" is exact, and the cost of the others in perplexity is in the report. passes: what is
        done to the model before it is packed; the artifact is held against the model as it was. for_isa: the
        instruction set that layouts are chosen and speeds predicted for ("scalar", "avx2", "avx2-vnni", "avx512",
        "amx"); None: this machine's. objective: what a layout is chosen for, see `choose_layout`.

    Raises:
        InputError: the model is unfit (see `open_source`), `out` is taken, there is no such instruction set, or
        `kv_cache` needs the op library and there is none; CheckError: parity failed, or rounding costs too much.
        Nothing is published then.
    """
    target = Path(out)
    check_target(target)
    if for_isa is not None:
        check_isa(for_isa)
    source = open_source(Path(model_directory), progress)
    packed, pass_reports = run_passes(source, passes, progress)
    return export_packed(
        source,
        packed,
        target,
        progress,
        values=values,
        lm_head=lm_head,
        kv_cache=kv_cache,
        pass_reports=pass_reports,
        for_isa=for_isa,
        objective=objective,
    )


def export_packed(
    source: SourceModel,
    packed: SourceModel,
    out: Path,
    progress: Callable[[str], None],
    *,
    values: str,
    lm_head: Literal["float32", "int8"],
    kv_cache: KvFormat = "float32",
    pass_reports: tuple[PassReport, ...],
    for_isa: str | None = None,
    objective: Objective = "latency",
) -> ExportReport:
    """`export_model` from where the model is loaded and the passes have run.

    Args:
        source: the model as it was, which the artifact is held against.
        packed: the model to pack: what the passes, whose reports `pass_reports` are, have made of it.
        out, progress, values, lm_head, kv_cache, for_isa, objective: as `export_model`.

    Raises:
        InputError, CheckError: as `export_model`. Nothing is published then.
    """
    check_context(source.decoder.context_length)
    with publish(out) as publication:
        staging = publication.directory
        graphs = _graphs(int8_head=lm_head == "int8")
        if kv_cache != "float32" and graphs[-1].attention.portable:
            raise InputError(f"keys and values as {kv_cache} need the op library, which cannot be loaded here")
        published = [graph for graph in graphs if graph.file != _CHECKED_FILE]
        reference = TorchReference(source, progress)
        stopwatch = Stopwatch(packed_once=takes_few_packings(packed.dense_bytes))
        if values == "float32":
            weights = _build(packed, graphs, staging, values, progress, for_isa, objective)
            parity = _check(reference, _Built(staging, packed, weights), graphs, progress, stopwatch)
        else:
            parity = _check_exact_form(reference, packed, graphs, staging, progress)
            weights = _build(packed, published, staging, values, progress, for_isa, objective)
        stored = Rounding(values, lm_head, kv_cache)
        report = replace(_report(packed, weights, parity, stored, staging), passes=pass_reports, objective=objective)
        if not stored.is_exact:
            built = _Built(staging, packed, weights)
            runners = {graph.file: partial(_open, graph, built, stopwatch, progress, kv_cache) for graph in published}
            quality = measure_quality(reference, runners, held_out_windows(source), stored, progress)
            report = replace(report, quality=quality)
        report = replace(report, speed=stopwatch.speed())
        write_report(staging, report.to_dict(), export_page(report, packed.projection_masks()))
        publish_tokenizer(source.path, staging)
        publication.finish(_manifest(packed, weights, kv_cache))
    return report


@dataclass(frozen=True)
class _Built:
    """The graphs of `packed` in a directory, over `weights`."""

    directory: Path
    packed: SourceModel
    weights: WeightFile

    def cells(self) -> dict[str, int]:
        """The possible links of each projection that is not dense."""
        choices = self.weights.choices.items()
        return {name: prod(self.packed.shape(name)) for name, choice in choices if choice.layout is not None}


@dataclass(frozen=True)
class _Graph:
    """One graph of the artifact, or one that is only checked."""

    file: str
    attention: AttentionForm
    lm_head: HeadForm

    def open(
        self, built: _Built, kv: KvFormat = "float32", progress: Callable[[str], None] = lambda stage: None
    ) -> AnyRunner:
        """A runner of the graph. It holds much memory: let go of it before another one is opened."""
        path, facts = built.directory / self.file, built.packed.facts()
        if self.attention.portable:
            return open_portable(path, facts, _PARITY_SLOTS, built.cells(), progress)
        return self.open_kernels(built, kv)

    def open_kernels(self, built: _Built, kv: KvFormat = "float32") -> VarlenRunner:
        """The runner of a graph for the op library; see `open`."""
        with few_packings(built.packed.dense_bytes):
            return VarlenRunner(built.directory / self.file, built.packed.facts(), slots=_PARITY_SLOTS, kv=kv)


def _graphs(int8_head: bool) -> list[_Graph]:
    """The graphs to build. Only the op library has an lm_head in int8; its graph is built with an exact one as well, so
    that the rest of it can be compared with torch."""
    exact: HeadForm = "dense" if int8_head else "packed"
    portable = _Graph(MODEL_FILE, StockAttention(), exact)
    try:
        register(onnxruntime.SessionOptions())
    except InputError as error:
        logger.warning("the artifact will have no %s: %s", KERNELS_MODEL_FILE, error)
        return [portable]
    if not int8_head:
        return [portable, _Graph(KERNELS_MODEL_FILE, VarlenAttention(), exact)]
    checked = _Graph(_CHECKED_FILE, VarlenAttention(), exact)
    return [portable, checked, _Graph(KERNELS_MODEL_FILE, VarlenAttention(), "int8")]


def _build(
    packed: SourceModel,
    graphs: Sequence[_Graph],
    directory: Path,
    values: str,
    progress: Callable[[str], None],
    for_isa: str | None = None,
    objective: Objective = "latency",
) -> WeightFile:
    with WeightFile(directory / DATA_FILE, values, Aim(for_isa, packed.dense_bytes), objective) as weights:
        for graph in graphs:
            model = build_decoder(packed, weights, graph.attention, graph.lm_head, progress)
            save_graph(model, directory / graph.file)
    return weights


def _check_exact_form(
    reference: TorchReference,
    packed: SourceModel,
    graphs: Sequence[_Graph],
    staging: Path,
    progress: Callable[[str], None],
) -> ParityFigures:
    """The gate of a model with rounded values: the same graphs with exact ones, which are not published."""
    directory = staging / "exact"
    directory.mkdir()
    weights = _build(packed, graphs, directory, "float32", progress)
    parity = _check(reference, _Built(directory, packed, weights), graphs, progress, Stopwatch())
    shutil.rmtree(directory)
    return parity


def held_out_windows(source: SourceModel) -> list[list[int]]:
    """The text that perplexities of a model are measured on (see `text_windows`), in its own tokens."""
    facts = source.facts()
    eos_token_id = facts.eos_token_ids[0] if facts.eos_token_ids else None
    return text_windows(source.path, eos_token_id, facts.context_length, source.dense_bytes // FLOAT32_BYTES)


def _open(
    graph: _Graph, built: _Built, stopwatch: Stopwatch, progress: Callable[[str], None], kv: KvFormat = "float32"
) -> AnyRunner:
    """A runner of a graph, which is timed as it is opened."""
    return stopwatch.time(graph.file, graph.open(built, kv, progress), progress)


def _check(
    reference: TorchReference,
    built: _Built,
    graphs: Sequence[_Graph],
    progress: Callable[[str], None],
    stopwatch: Stopwatch,
) -> ParityFigures:
    """Check every graph, one open at a time; the worst figures of all. Removes the graph that is not published.

    The op library's comes first: it generates at any size, and the portable one of a large model cannot.
    """
    figures: list[ParityFigures] = []
    for graph in sorted(graphs, key=lambda graph: (graph.lm_head == "int8", graph.attention.portable)):
        tell = partial(_tell, progress, graph.file)
        if graph.lm_head == "int8":
            exact = next(other for other in graphs if other.file == _CHECKED_FILE)
            pair = partial(exact.open_kernels, built), partial(graph.open_kernels, built)
            off = check_shortlist(*pair, figures[-1].logit_tolerance, tell)
            logger.info("lm_head in int8: logits are off by up to %.2g of the largest", off)
        else:
            opened = partial(_open, graph, built, stopwatch, progress)
            figures.append(check_against(reference, opened, tell, built.packed.decoder.reach))
    (built.directory / _CHECKED_FILE).unlink(missing_ok=True)
    return _worst(figures)


def _tell(progress: Callable[[str], None], file: str, check: str) -> None:
    progress(f"checking parity of {file}: {check}")


def _worst(figures: Sequence[ParityFigures]) -> ParityFigures:
    """The worst of each figure over all graphs. (Of the figures, only `greedy_tokens` is better where it is larger.)"""
    values = {name: max(getattr(each, name) for each in figures) for name in figures[0].to_json()}
    values["greedy_tokens"] = min(each.greedy_tokens for each in figures)
    return ParityFigures(**values)


def _report(
    source: SourceModel, weights: WeightFile, parity: ParityFigures, stored: Rounding, staging: Path
) -> ExportReport:
    layers = [layer_report(name, source.mask(name), choice) for name, choice in weights.choices.items()]
    file_bytes = sum(path.stat().st_size for path in staging.iterdir())
    return ExportReport(
        source=source.path.name,
        masks="Masks as trained"
        if source.masks_stored
        else "No masks came with the model: the links are its non-zero weights",
        layers=layers,
        parity=parity,
        file_bytes=file_bytes,
        stored=stored,
        pruning=read_text_costs(source.path),
        training=read_trained_perplexity(source.path),
        dense_bytes=file_bytes + sum(layer.dense_bytes - layer.bytes for layer in layers),
        forecast=forecast(weights.choices.values(), weights.aim.isa),
    )


def _manifest(source: SourceModel, weights: WeightFile, kv_cache: KvFormat) -> Manifest:
    trained = source.manifest
    return Manifest(
        kind="onnx",
        method=trained.method if trained else None,
        recipe_digest=trained.recipe_digest if trained else None,
        layers=tuple(
            source.layer_facts(name, choice.layout.name if choice.layout else "dense")
            for name, choice in weights.choices.items()
        ),
        language_model=replace(source.facts(), kv_cache=kv_cache),
    )
