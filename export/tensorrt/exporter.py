"""From a model directory to a published artifact with engines: the portable ONNX first, then graphs, gate and builds.

The artifact is of kind "onnx" and complete without its engines: where none fits the machine, the ONNX is run.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...artifacts import Manifest, publish, read_manifest
from ...artifacts.manifest import MANIFEST_FILE
from ...artifacts.page import write_report
from ...artifacts.publishing import check_target
from ...kernels.cost import check_isa
from ...runtime.engines import EngineFacts, Gpu, write_engines
from ...runtime.gpu import find_gpu
from ...runtime.static_cache import StepLimits
from ..exporter import NO_PASSES, export_packed, held_out_windows
from ..graph import SourceModel, load_source
from ..layouts import Objective
from ..passes import PassOptions, run_passes
from ..quality import QualityFigures, Rounding, measure_quality
from ..reference import TorchReference
from ..report import ExportReport
from ..report_page import export_page
from .build import RUNTIMES, EngineBuild, EngineRequest, EngineRuntime, build_engine, check_runtime
from .choosing import DENSE, FormChoice, choose_form, layer_reports, stay_dense
from .decoder import build_static_decoder, step_profiles
from .decoding import check_packed
from .earlier import read_earlier
from .ordering import Orders, in_order, input_orders
from .parity import EngineParity, check_graph, open_graph
from .report import REPORT_FILE, EngineReport, write_engine_report
from .sparsity import layer_sparsity, parse_sparsity_log
from .typed_graph import PRECISIONS, Precision, save_typed_model
from .unchanged import unchanged_layers

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """How to build: the runtime by name, the precision of weights and cache, the largest steps, a timing cache to read
    and write, whether layers may become plugins (see `choosing`), an earlier artifact whose engines are copied into it,
    and the seconds that a build may take."""

    runtime: str = "tensorrt-rtx"
    precision: str = "float16"
    limits: StepLimits = field(default_factory=StepLimits)
    timing_cache: Path | None = None
    plugins: bool = False
    engines_from: Path | None = None
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
    for_isa: str | None = None,
    objective: Objective = "latency",
) -> tuple[ExportReport, EngineReport]:
    """Export a model directory to sparse ONNX and an engine, and publish both where they agree with torch.

    Args:
        model_directory, out, progress: as `export_model`. options: of the engine. values, lm_head: of the ONNX; the
        engine's numbers are of its own precision. passes: what is done to the model first, for both. for_isa,
        objective: as `export_model`, of the ONNX.

    Raises:
        InputError: the runtime is not installed, the model is unfit, `out` is taken, or there is no such instruction
            set; UnsupportedModelError: NVIDIA's parser refuses the graph; CheckError: parity or the build failed.
            Nothing is published then.
    """
    runtime = RUNTIMES[options.runtime]
    check_runtime(runtime, plugins=options.plugins)
    gpu = None if runtime.builds_without_gpu else find_gpu()
    check_target(out)
    if for_isa is not None:
        check_isa(for_isa)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.engines.", dir=out.absolute().parent) as directory:
        work = Path(directory)
        portable = work / "portable"
        progress("reading the model")
        original = load_source(model_directory)
        source, pass_reports = run_passes(original, passes, progress)
        onnx_report = export_packed(
            original,
            source,
            portable,
            progress,
            values=values,
            lm_head=lm_head,
            pass_reports=pass_reports,
            for_isa=for_isa,
            objective=objective,
        )
        # Before the build, which takes long.
        earlier = None if options.engines_from is None else read_earlier(options.engines_from, portable)
        with publish(out) as publication:
            staging = publication.directory
            orders: Orders = {}
            if passes.permute == "2:4":
                progress("ordering the inputs of single layers")
                orders = input_orders(source.projection_masks())
            export = _Export(original, source, orders, runtime, gpu, options, progress)
            engine, report = export.build(work, staging)
            manifest = _move_portable(portable, staging)
            onnx_report = replace(onnx_report, engine_layers=report.stored)
            write_report(staging, onnx_report.to_dict(), export_page(onnx_report, source.projection_masks()))
            write_engine_report(staging / REPORT_FILE, report)
            copied = earlier.copy(staging, engine) if earlier else ()
            reports = list(earlier.reports) if earlier else []
            write_engines(staging, [engine, *copied], asdict(report) | {"earlier": reports})
            publication.finish(manifest)
    return onnx_report, report


@dataclass(frozen=True)
class _Export:
    """One engine to build of `source`, which passes have made of `original`, and some of whose layers gather their
    inputs in an order of their own. `gpu` is None where none is needed."""

    original: SourceModel
    source: SourceModel
    orders: Orders
    runtime: EngineRuntime
    gpu: Gpu | None
    options: EngineOptions
    progress: Progress

    @cached_property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """The masks [N, K] of the layers, inputs in the order in which they are gathered."""
        return {
            name: in_order(mask_NK, self.orders.get(name)) for name, mask_NK in self.source.projection_masks().items()
        }

    def weight(self, name: str) -> NDArray[np.float32]:
        """A weight [N, K], as `masks`."""
        return in_order(self.source.weight(name), self.orders.get(name))

    def build(self, work: Path, staging: Path) -> tuple[EngineFacts, EngineReport]:
        """Choose forms, write the graph to `work`, hold it against torch, and build the engine into `staging`."""
        precision = PRECISIONS[self.options.precision]
        choices = self._choices()
        forms = {name: choice.form for name, choice in choices.items() if choice.form != DENSE}
        graph = work / "graph.onnx"
        self.progress(f"building the graph in {precision.name}")
        save_typed_model(build_static_decoder(self.source, precision, forms, self.orders), graph)
        check_packed(graph, {name: self.weight(name) for name in forms}, self.masks, forms, precision)
        parity = check_graph(
            self.original.model, self.source, graph, precision, self._tell, forms=forms, orders=self.orders
        )
        quality = self._quality(graph, precision)
        facts, build = self._build(graph, staging, precision, plugins=bool(forms))
        return facts, self._report(facts, build, parity, quality, choices, staging / facts.file)

    def _tell(self, check: str) -> None:
        self.progress(f"checking the engine's graph: {check}")

    def _choices(self) -> dict[str, FormChoice]:
        """The form of each projection (a tied lm_head is the embedding, and none)."""
        if not self.options.plugins or self.gpu is None:
            why = f"{self.runtime.title} has no other product without plugins"
            if not self.runtime.takes_plugins:
                why = f"{self.runtime.title} has no other product, and takes no plugins"
            choices = {name: stay_dense(mask_NK, why) for name, mask_NK in self.masks.items()}
        else:
            choices = {name: choose_form(mask_NK, self.gpu) for name, mask_NK in self.masks.items()}
        gathers = "; it gathers its inputs in an order of its own, by which it is 2:4"
        return {
            name: replace(choice, reason=choice.reason + gathers) if name in self.orders else choice
            for name, choice in choices.items()
        }

    def _quality(self, graph: Path, precision: Precision) -> QualityFigures:
        """Perplexity of the file that is built, as ONNX Runtime computes it."""
        windows_WS = held_out_windows(self.original)
        runners = {f"the engine's graph in {precision.name}": partial(open_graph, self.source, graph, precision)}
        rounding = Rounding(precision.name, precision.name, precision.name)
        return measure_quality(TorchReference(self.original), runners, windows_WS, rounding, self._tell)

    def _build(
        self, graph: Path, staging: Path, precision: Precision, *, plugins: bool
    ) -> tuple[EngineFacts, EngineBuild]:
        runtime, options = self.runtime, self.options
        capabilities = _capabilities(runtime, precision, self.gpu)
        file = f"{runtime.name}-{'-'.join('sm' + c.replace('.', '') for c in capabilities)}-{precision.name}.engine"
        self.progress(f"{runtime.title} builds for compute capability {', '.join(capabilities)}")
        request = EngineRequest(
            runtime,
            graph,
            staging / file,
            step_profiles(self.source.facts(), options.limits),
            capabilities,
            timing_cache=options.timing_cache,
            plugins=plugins,
            seconds=options.seconds,
        )
        build = build_engine(request)
        return EngineFacts(file, runtime.name, build.version, capabilities, precision.name, options.limits), build

    def _report(
        self,
        facts: EngineFacts,
        build: EngineBuild,
        parity: EngineParity,
        quality: QualityFigures,
        choices: Mapping[str, FormChoice],
        engine: Path,
    ) -> EngineReport:
        # TensorRT-RTX takes the sparsity flag and says nothing of it.
        log = None if self.runtime.builds_without_gpu else parse_sparsity_log(build.log)
        precision, masks = PRECISIONS[facts.precision], self.masks
        dense = [name for name in masks if choices[name].form == DENSE]
        weights = {n: self.weight(n).astype(precision.numpy) for n in (*dense, self.source.decoder.embedding)}
        return EngineReport(
            engine=facts,
            engine_bytes=engine.stat().st_size,
            build_seconds=build.seconds,
            parity=parity,
            quality=quality,
            unchanged=tuple(unchanged_layers(engine.read_bytes(), weights)),
            layers=tuple(layer_sparsity(name, masks[name], name, log) for name in sorted(dense)),
            stored=layer_reports(masks, choices),
        )


def _capabilities(runtime: EngineRuntime, precision: Precision, gpu: Gpu | None) -> tuple[str, ...]:
    """The GPU generations to build for: all that have the precision, or the one of this machine's GPU."""
    if gpu is not None:
        return (gpu.compute_capability,)
    return tuple(c for c in runtime.compute_capabilities if float(c) >= precision.least_capability)


def _move_portable(portable: Path, staging: Path) -> Manifest:
    """Move the published ONNX artifact's files to the new one; returns its manifest without them."""
    manifest = read_manifest(portable)
    for path in portable.iterdir():
        if path.name != MANIFEST_FILE:
            shutil.move(path, staging / path.name)
    return replace(manifest, files={})
