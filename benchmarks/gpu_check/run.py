"""The whole check: conditions, parity of kernels and engines, times, page, verdict."""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...artifacts import CheckError, InputError
from ...artifacts.publishing import write_atomically
from ...export.graph import load_source
from ...export.tensorrt.build import RUNTIMES, EngineRequest, EngineRuntime, build_engine, installed_runtimes
from ...export.tensorrt.choosing import FORMS
from ...export.tensorrt.decoder import build_static_decoder, step_profiles
from ...export.tensorrt.exporter import EngineOptions, export_engines
from ...export.tensorrt.parity import check_precision
from ...export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from ...kernels.gpu.check.tables import page_name
from ...kernels.gpu.driver import Driver
from ...runtime.engines import EngineFacts, Gpu, is_installed, read_engines
from ...runtime.gpu import find_gpu
from ...runtime.static_cache import StaticCacheRunner, StepLimits
from ...runtime.tensorrt import Device, EngineExecutor, TensorRtRunner, open_runner
from .page import EngineCheck, GpuCheck, render_page

Progress = Callable[[str], None]
_LIMITS = StepLimits(batch=4, tokens=64)
_SLOTS = 3
KERNEL_SECONDS = 240.0
"""For the times of the kernels; those of TensorRT come on top."""


def run_gpu_check(model: Path | None, docs: Path, progress: Progress = lambda stage: None) -> tuple[GpuCheck, Path]:
    """Check everything that needs a GPU, write the page, and return what was found and where the page is.

    Args:
        model: a model directory to build engines of; None makes a small one. docs: where pages lie.

    Raises:
        InputError: the machine has no GPU, no TensorRT, or a torch or Triton language that cannot use it. (What is
        wrong on a machine that has them is in the result's `mismatches`.)
    """
    gpu, runtimes = check_conditions()
    from ...kernels.gpu.check.cases import check_kernels
    from ...kernels.gpu.check.speed import Clock, LayerTime, NotTimed, Sweep, time_kernels
    from .layers import time_plugins, time_tensorrt

    failures: list[str] = []
    progress("comparing the kernels with float64")
    parity = tuple(check_kernels("cuda"))
    engines = _collect(runtimes, failures, lambda runtime: [_check_engine(runtime, model, progress)])
    # TensorRT-RTX takes no plugins.
    takers = [runtime for runtime in runtimes if runtime.takes_plugins]
    driver = Driver.open()
    engines += _collect(takers, failures, lambda runtime: [check_plugins(runtime, gpu, driver, model, progress)])
    progress("timing the kernels")
    rows = list(time_kernels(Sweep(), Clock(KERNEL_SECONDS)))
    times = [row for row in rows if isinstance(row, LayerTime)]
    left_out = tuple(row for row in rows if isinstance(row, NotTimed))
    progress("timing TensorRT")
    layers = _collect(runtimes, failures, lambda runtime: list(time_tensorrt(runtime, gpu.compute_capability)))
    progress("timing the plugins")
    times += _collect(takers, failures, lambda runtime: list(time_plugins(runtime, gpu.compute_capability)))
    check = GpuCheck(
        gpu.name,
        gpu.compute_capability,
        _versions(runtimes),
        parity,
        tuple(times),
        left_out,
        tuple(engines),
        tuple(layers),
        tuple(failures),
    )
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / page_name(gpu.name)
    write_atomically(page, render_page(check))
    return check, page


def check_conditions() -> tuple[Gpu, list[EngineRuntime]]:
    """The GPU, and the installed runtimes that build for it. (TensorRT-RTX has no target for some data centre GPUs.)

    Raises:
        InputError: something is missing; the message is one line.
    """
    gpu = find_gpu()
    runtimes = installed_runtimes(gpu.compute_capability)
    if not runtimes:
        raise InputError(
            f"no runtime for {gpu.name} ({gpu.compute_capability}) is installed: {RUNTIMES['tensorrt'].installation}"
        )
    if not is_installed("triton"):
        raise InputError("the Triton language is not installed: pip install 'hebbline[gpu-build]'")
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} cannot use the GPU: install a build with CUDA")
    return gpu, runtimes


def _collect(
    runtimes: list[EngineRuntime], failures: list[str], check: Callable[[EngineRuntime], list[Any]]
) -> list[Any]:
    """What a check finds for each runtime; a failed one is told in words, and the others go on."""
    found: list[Any] = []
    for runtime in runtimes:
        try:
            found += check(runtime)
        except CheckError as error:
            failures.append(f"{runtime.title}: {error}")
    return found


def _check_engine(runtime: EngineRuntime, model: Path | None, progress: Progress) -> EngineCheck:
    """Export with this runtime, and compare the engine, run on the GPU, with torch."""
    with tempfile.TemporaryDirectory(prefix="hebbline-gpu-check-") as directory:
        source_path = model or small_model(Path(directory) / "model")
        artifact = Path(directory) / "artifact"
        progress(f"building an engine with {runtime.title}")
        export_engines(source_path, artifact, EngineOptions(runtime=runtime.name, limits=_LIMITS), progress)
        (facts,) = read_engines(artifact)
        runner = open_runner(artifact, slots=_SLOTS)
        if not isinstance(runner, TensorRtRunner):
            raise CheckError(f"{facts.file} was built here and is not run here")
        source = load_source(source_path)
        engine, torch = check_precision(source.model, runner, PRECISIONS[facts.precision], "the engine")
    return EngineCheck(runtime.name, facts.version, facts.precision, engine, torch)


def check_plugins(
    runtime: EngineRuntime, gpu: Gpu, device: Device, model: Path | None, progress: Progress
) -> EngineCheck:
    """Build a model whose projections are plugins of every form in turn, whichever is the fastest, run it on the GPU,
    and compare it with torch.

    Raises:
        CheckError: the build fails, or the engine is too far from torch.
    """
    precision = PRECISIONS["float16"]
    with tempfile.TemporaryDirectory(prefix="hebbline-gpu-check-") as directory:
        source = load_source(model or small_model(Path(directory) / "model"))
        forms = {name: FORMS[place % len(FORMS)] for place, name in enumerate(sorted(source.masks))}
        graph, engine = Path(directory) / "graph.onnx", Path(directory) / "plugins.engine"
        save_typed_model(build_static_decoder(source, precision, forms), graph)
        progress(f"building an engine of plugins with {runtime.title}")
        profiles, own = step_profiles(source.facts(), _LIMITS), (gpu.compute_capability,)
        built = build_engine(EngineRequest(runtime, graph, engine, profiles, own, plugins=True))
        facts = EngineFacts(engine.name, runtime.name, built.version, own, precision.name, _LIMITS)
        trt = importlib.import_module(runtime.module)
        executor = EngineExecutor(trt, engine.read_bytes(), facts, source.facts(), _SLOTS, device)
        runner = StaticCacheRunner(source.facts(), _SLOTS, _LIMITS, executor)
        found, torch = check_precision(source.model, runner, precision, "the engine of plugins")
    return EngineCheck(f"{runtime.name}, all projections plugins,", built.version, precision.name, found, torch)


def small_model(directory: Path) -> Path:
    """A random Llama of two layers with 2:4 projections and a tokenizer of bytes, in the Hugging Face layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.view(-1, 4)[:, 1:3] = 0
    model.save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _versions(runtimes: list[EngineRuntime]) -> dict[str, str]:
    packages = {runtime.title: runtime.module for runtime in runtimes} | {"torch": "torch", "Triton": "triton"}
    return {title: str(importlib.import_module(module).__version__) for title, module in packages.items()}
