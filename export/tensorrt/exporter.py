"""From a model directory to a published artifact with engines: the portable ONNX first, then graphs, gate and builds.

The artifact is of kind "onnx" and complete without its engines: where none fits the machine, the ONNX is run.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...artifacts import Manifest, publish, read_manifest
from ...artifacts.manifest import MANIFEST_FILE
from ...artifacts.publish import check_target
from ...serve.engine.engines import EngineFacts, write_engines
from ...serve.engine.gpu import find_gpu
from ...serve.engine.static_cache import StepLimits
from ..exporter import NO_PASSES, export_packed
from ..graph.source import SourceModel, load_source
from ..passes import PassOptions, run_passes
from ..report import ExportReport
from .build import RUNTIMES, EngineBuild, EngineRequest, EngineRuntime, build_engine, check_runtime
from .carried import carried_layers
from .llama import build_static_llama, step_profiles
from .parity import EngineParity, check_graph
from .report import REPORT_FILE, EngineReport, write_engine_report
from .sparsity import layer_sparsity, parse_sparsity_log
from .typed_graph import PRECISIONS, Precision, save_typed_model

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """How to build: the runtime by name, the precision of weights and cache, the largest steps, a timing cache to read
    and write, and the seconds that a build may take."""

    runtime: str = "tensorrt-rtx"
    precision: str = "float16"
    limits: StepLimits = field(default_factory=StepLimits)
    timing_cache: Path | None = None
    seconds: float = 3600.0


def export_engines(
    model_directory: Path,
    out: Path,
    options: EngineOptions,
    progress: Progress = lambda stage: None,
    *,
    values: str = "float32",
    lm_head: Literal["float32", "int8"] = "float32",
    passes: PassOptions = NO_PASSES,
) -> tuple[ExportReport, EngineReport]:
    """Export a Llama directory to sparse ONNX and an engine, and publish both where they agree with torch.

    Args:
        model_directory, out, progress: as `export_model`. options: of the engine. values, lm_head: of the ONNX; the
        engine's numbers are of its own precision. passes: what is done to the model first, for both.

    Raises:
        InputError: the runtime is not installed, the model is unfit, or `out` is taken; UnsupportedModelError: NVIDIA's
            parser refuses the graph; CheckError: parity or the build failed. Nothing is published then.
    """
    runtime = RUNTIMES[options.runtime]
    check_runtime(runtime)
    check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.engines.", dir=out.absolute().parent) as directory:
        work = Path(directory)
        portable = work / "portable"
        progress("reading the model")
        original = load_source(model_directory)
        source, pass_reports = run_passes(original, passes, progress)
        onnx_report = export_packed(
            original, source, portable, progress, values=values, lm_head=lm_head, pass_reports=pass_reports
        )
        with publish(out) as publication:
            engine, report = _build(source, runtime, options, work, publication.directory, progress)
            manifest = _move_portable(portable, publication.directory)
            write_engine_report(publication.directory / REPORT_FILE, report)
            write_engines(publication.directory, [engine], asdict(report))
            publication.finish(manifest)
    return onnx_report, report


def _build(
    source: SourceModel, runtime: EngineRuntime, options: EngineOptions, work: Path, staging: Path, progress: Progress
) -> tuple[EngineFacts, EngineReport]:
    precision = PRECISIONS[options.precision]
    graph = work / "graph.onnx"
    progress(f"building the graph in {precision.name}")
    save_typed_model(build_static_llama(source, precision), graph)
    parity = check_graph(source, graph, precision, lambda check: progress(f"checking the engine's graph: {check}"))
    capabilities = _capabilities(runtime, precision)
    file = f"{runtime.name}-{'-'.join('sm' + c.replace('.', '') for c in capabilities)}-{precision.name}.engine"
    progress(f"{runtime.title} builds for compute capability {', '.join(capabilities)}")
    request = EngineRequest(
        runtime,
        graph,
        staging / file,
        step_profiles(source.facts(), options.limits),
        capabilities,
        timing_cache=options.timing_cache,
        seconds=options.seconds,
    )
    build = build_engine(request)
    facts = EngineFacts(file, runtime.name, build.version, capabilities, precision.name, options.limits)
    return facts, _report(source, runtime, facts, build, parity, staging / file)


def _capabilities(runtime: EngineRuntime, precision: Precision) -> tuple[str, ...]:
    """The GPU generations to build for: all that have the precision, or the one of this machine's GPU."""
    if not runtime.builds_without_gpu:
        return (find_gpu().compute_capability,)
    return tuple(c for c in runtime.compute_capabilities if float(c) >= precision.least_capability)


def _report(
    source: SourceModel,
    runtime: EngineRuntime,
    facts: EngineFacts,
    build: EngineBuild,
    parity: EngineParity,
    engine: Path,
) -> EngineReport:
    # TensorRT-RTX takes the sparsity flag and says nothing of it.
    log = None if runtime.builds_without_gpu else parse_sparsity_log(build.log)
    numpy_type = PRECISIONS[facts.precision].numpy
    weights = {name: source.weight(name).astype(numpy_type) for name in (*source.masks, "model.embed_tokens")}
    return EngineReport(
        engine=facts,
        engine_bytes=engine.stat().st_size,
        build_seconds=build.seconds,
        parity=parity,
        carried=tuple(carried_layers(engine.read_bytes(), weights)),
        layers=tuple(layer_sparsity(name, mask_NK, name, log) for name, mask_NK in sorted(source.masks.items())),
    )


def _move_portable(portable: Path, staging: Path) -> Manifest:
    """Move the published ONNX artifact's files to the new one; returns its manifest without them."""
    manifest = read_manifest(portable)
    for path in portable.iterdir():
        if path.name != MANIFEST_FILE:
            shutil.move(path, staging / path.name)
    return replace(manifest, files={})
