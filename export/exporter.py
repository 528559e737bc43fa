"""From a model directory to a published artifact: build, verify, report, publish."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime

from ..artifacts import InputError, Manifest, publish
from ..artifacts.model_directory import TOKENIZER_FILE
from ..artifacts.publish import check_target
from ..kernels import register
from ..serve.engine.onnxruntime import KERNELS_MODEL_FILE, MODEL_FILE
from ..serve.engine.portable import PortableRunner
from ..serve.engine.varlen import VarlenRunner
from .graph import (
    AttentionForm,
    SourceModel,
    StockAttention,
    VarlenAttention,
    WeightFile,
    build_llama,
    load_source,
    save_graph,
)
from .report import ExportReport, layer_report, write_reports
from .verify import ParityFigures, check_parity

DATA_FILE = MODEL_FILE + ".data"
"""The weights of all graphs of an artifact."""
_PARITY_SLOTS = 3
_ATTENTION: dict[str, AttentionForm] = {MODEL_FILE: StockAttention(), KERNELS_MODEL_FILE: VarlenAttention()}

logger = logging.getLogger(__name__)


def export_model(
    model_directory: Path, out: Path, progress: Callable[[str], None] = lambda stage: None
) -> ExportReport:
    """Export a Llama directory to sparse ONNX, and publish it where it agrees with torch.

    The artifact has two graphs over one file of weights: one of stock ops for any ONNX Runtime, and one for the op
    library of this installation. Both must pass the parity gate. Without the library there is only the first, since
    nothing is published that was not run; a warning says so.

    Args:
        model_directory: a Hugging Face directory with tokenizer; masks are those stored in it, else the non-zero
        weights. out: where to publish the artifact. progress: told each stage as it begins.

    Raises:
        InputError: the model is unfit (see `load_source`) or `out` is taken; CheckError: parity failed. Nothing is
        published then.
    """
    check_target(out)
    progress("reading the model")
    source = load_source(model_directory)
    with publish(out) as publication:
        staging = publication.directory
        progress("packing the layers")
        runners = _graphs_to_export()
        with WeightFile(staging / DATA_FILE) as weights:
            for file in runners:
                save_graph(build_llama(source, weights, _ATTENTION[file]), staging / file)
        parity = _worst([_check(source, runner, staging / file, progress) for file, runner in runners.items()])
        report = _report(source, weights, parity, staging)
        write_reports(staging, report, source.masks)
        shutil.copyfile(model_directory / TOKENIZER_FILE, staging / TOKENIZER_FILE)
        publication.finish(_manifest(source, weights))
    return report


def _graphs_to_export() -> dict[str, type[PortableRunner] | type[VarlenRunner]]:
    """The graph files, and the runner of each."""
    try:
        register(onnxruntime.SessionOptions())
    except InputError as error:
        logger.warning("the artifact will have no %s: %s", KERNELS_MODEL_FILE, error)
        return {MODEL_FILE: PortableRunner}
    return {MODEL_FILE: PortableRunner, KERNELS_MODEL_FILE: VarlenRunner}


def _check(
    source: SourceModel,
    runner_class: type[PortableRunner] | type[VarlenRunner],
    path: Path,
    progress: Callable[[str], None],
) -> ParityFigures:
    runner = runner_class(path, source.facts(), slots=_PARITY_SLOTS)
    return check_parity(source.model, runner, lambda check: progress(f"checking parity of {path.name}: {check}"))


def _worst(figures: Sequence[ParityFigures]) -> ParityFigures:
    """The worst of each figure over all graphs. (Of the figures, only `greedy_tokens` is better where it is larger.)"""
    values = {name: max(getattr(each, name) for each in figures) for name in figures[0].to_json()}
    values["greedy_tokens"] = min(each.greedy_tokens for each in figures)
    return ParityFigures(**values)


def _report(source: SourceModel, weights: WeightFile, parity: ParityFigures, staging: Path) -> ExportReport:
    layers = [layer_report(name, source.masks[name], choice) for name, choice in weights.choices.items()]
    file_bytes = sum(path.stat().st_size for path in staging.iterdir())
    return ExportReport(
        source=source.path.name,
        masks="Masks as trained"
        if source.masks_stored
        else "No masks came with the model: the links are its non-zero weights",
        layers=layers,
        parity=parity,
        file_bytes=file_bytes,
        dense_bytes=file_bytes + sum(layer.dense_bytes - layer.bytes for layer in layers),
    )


def _manifest(source: SourceModel, weights: WeightFile) -> Manifest:
    trained = source.manifest
    return Manifest(
        kind="onnx",
        method=trained.method if trained else None,
        recipe_digest=trained.recipe_digest if trained else None,
        layers=tuple(
            source.layer_facts(name, choice.layout.name if choice.layout else "dense")
            for name, choice in weights.choices.items()
        ),
        language_model=source.facts(),
    )
