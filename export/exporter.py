"""From a model directory to a published artifact: build, verify, report, publish."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ..artifacts import Manifest, publish
from ..artifacts.model_directory import TOKENIZER_FILE
from ..artifacts.publish import check_target
from ..serve.engine.onnxruntime import MODEL_FILE, OnnxRunner
from .graph import SourceModel, build_llama, load_source
from .graph.builder import EXTERNAL_DATA_SUFFIX, GraphBuilder, save_model
from .report import ExportReport, layer_report, write_reports
from .verify import ParityFigures, check_parity

_PARITY_SLOTS = 3


def export_model(
    model_directory: Path, out: Path, progress: Callable[[str], None] = lambda stage: None
) -> ExportReport:
    """Export a Llama directory to sparse ONNX, and publish it where it agrees with torch.

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
        model, builder = build_llama(source)
        save_model(model, staging / MODEL_FILE)
        del model
        runner = OnnxRunner(staging / MODEL_FILE, source.facts(), slots=_PARITY_SLOTS)
        parity = check_parity(source.model, runner, lambda check: progress(f"checking parity: {check}"))
        report = _report(source, builder, parity, staging)
        write_reports(staging, report, source.masks)
        shutil.copyfile(model_directory / TOKENIZER_FILE, staging / TOKENIZER_FILE)
        publication.finish(_manifest(source, builder))
    return report


def _report(source: SourceModel, builder: GraphBuilder, parity: ParityFigures, staging: Path) -> ExportReport:
    layers = [layer_report(name, source.masks[name], choice) for name, choice in builder.choices.items()]
    files = [staging / MODEL_FILE, staging / (MODEL_FILE + EXTERNAL_DATA_SUFFIX)]
    file_bytes = sum(path.stat().st_size for path in files)
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


def _manifest(source: SourceModel, builder: GraphBuilder) -> Manifest:
    trained = source.manifest
    return Manifest(
        kind="onnx",
        method=trained.method if trained else None,
        recipe_digest=trained.recipe_digest if trained else None,
        layers=tuple(
            source.layer_facts(name, choice.layout.name if choice.layout else "dense")
            for name, choice in builder.choices.items()
        ),
        language_model=source.facts(),
    )
