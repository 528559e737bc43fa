"""Builds an engine from an ONNX file in a process of its own, within a time limit.

Two runtimes share the code: TensorRT-RTX, whose builder needs no GPU and builds for the generations it is told, and
TensorRT, whose builder times kernels on the GPU of the machine.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...artifacts import CheckError, InputError, UnsupportedModelError
from ...runtime.engines import is_installed
from .worker import BUILT, REFUSED

Shapes = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Of each dynamic input the smallest, the usual and the largest shape."""
WORKER = Path(__file__).with_name("worker.py")
WORDS_SHOWN = 300
_PARSED_NODE = re.compile(r"Parsing node: (\S+) \[(\w+)\]")


@dataclass(frozen=True)
class EngineRuntime:
    """A runtime that engines are built for: the Python module that builds and runs them, and how to get it."""

    name: str
    title: str
    module: str
    builds_without_gpu: bool
    takes_plugins: bool
    compute_capabilities: tuple[str, ...]
    """Generations to build for; empty: the one of the GPU that is found."""
    installation: str


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        EngineRuntime(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            builds_without_gpu=True,
            takes_plugins=False,
            compute_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0"),
            installation="pip install 'hebbline[gpu-build]'",
        ),
        EngineRuntime(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            builds_without_gpu=False,
            takes_plugins=True,
            compute_capabilities=(),
            installation="pip install tensorrt on a machine with an NVIDIA GPU, or use NVIDIA's TensorRT container; "
            "--target tensorrt-rtx builds without a GPU",
        ),
    )
}


def installed_runtimes(capability: str) -> list[EngineRuntime]:
    """The installed runtimes that build for a compute capability. (TensorRT-RTX has no target for H100 and B200.)"""
    return [
        runtime
        for runtime in RUNTIMES.values()
        if is_installed(runtime.module) and capability in (runtime.compute_capabilities or (capability,))
    ]


@dataclass(frozen=True)
class EngineRequest:
    """What to build: the ONNX file, the engine file to write, the shapes of each optimization profile, the GPU
    generations (of those that the runtime builds for without one), and options.

    `timing_cache`: a file that is read where it exists and written after the build; it spares the next build on the
    same GPU most of its timing. `plugins`: register the plugins of `kernels/gpu` first (TensorRT only).
    """

    runtime: EngineRuntime
    onnx: Path
    engine: Path
    profiles: Sequence[Shapes]
    compute_capabilities: tuple[str, ...]
    sparse_weights: bool = True
    timing_cache: Path | None = None
    plugins: bool = False
    seconds: float = 3600.0


@dataclass(frozen=True)
class EngineBuild:
    """A finished build: the runtime's version, what the builder said, and how long it took."""

    version: str
    network_layers: int
    seconds: float
    log: str = field(repr=False)


def check_runtime(runtime: EngineRuntime, *, plugins: bool = False) -> None:
    """Raise InputError, with what to do, where the runtime's package is not installed, or plugins are asked for that it
    does not take or nothing here compiles."""
    if plugins and not runtime.takes_plugins:
        raise InputError(f"{runtime.title} takes no plugins: export with --target tensorrt, or without --plugins")
    if not is_installed(runtime.module):
        raise InputError(f"{runtime.title} is not installed: {runtime.installation}")
    if plugins and not is_installed("triton"):
        raise InputError("the Triton language, which compiles the plugins, is not installed: pip install triton")


def build_engine(request: EngineRequest) -> EngineBuild:
    """Build and write one engine.

    Raises:
        InputError: the runtime is not installed; UnsupportedModelError: its parser refuses the graph (the message has
        the node and the parser's own words); CheckError: the build fails, dies or exceeds its time.
    """
    check_runtime(request.runtime)
    with tempfile.TemporaryDirectory(prefix="hebbline-engine-") as directory:
        work = Path(directory)
        log, result = work / "builder.log", work / "result.json"
        (work / "request.json").write_text(json.dumps(_request_json(request, log, result)))
        _run_worker(request, work, log)
        return _read_result(request, json.loads(result.read_text()), log.read_text())


def _request_json(request: EngineRequest, log: Path, result: Path) -> dict[str, object]:
    return {
        "module": request.runtime.module,
        "onnx": str(request.onnx.absolute()),
        "engine": str(request.engine.absolute()),
        "log": str(log),
        "result": str(result),
        "compute_capabilities": list(request.compute_capabilities) if request.runtime.builds_without_gpu else [],
        "profiles": [{name: [list(shape) for shape in shapes] for name, shapes in p.items()} for p in request.profiles],
        "sparse_weights": request.sparse_weights,
        "plugins": request.plugins,
        "timing_cache": None if request.timing_cache is None else str(request.timing_cache.absolute()),
    }


def _run_worker(request: EngineRequest, work: Path, log: Path) -> None:
    # By path, not by module: the process imports the runtime and nothing of ours. Its directory, which is first on its
    # path, is an empty one.
    run = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", run, str(WORKER), str(work / "request.json")]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=request.seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckError(
            f"{request.onnx}: {request.runtime.title} did not finish within {request.seconds:g} s; last it said: "
            f"{_last_words(log)}"
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CheckError(f"{request.onnx}: {request.runtime.title} died of {name}; last it said: {_last_words(log)}")
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise CheckError(f"{request.onnx}: {request.runtime.title} cannot build here: {words}")


def _read_result(request: EngineRequest, result: Mapping[str, Any], log: str) -> EngineBuild:
    title = f"{request.runtime.title} {result['version']}"
    if result["outcome"] == REFUSED:
        raise UnsupportedModelError(f"{request.onnx}: {title} refuses {_refusal(result['errors'], log)}")
    if result["outcome"] != BUILT:
        raise CheckError(f"{request.onnx}: {title} cannot build the engine: {_last_error(log)}")
    return EngineBuild(result["version"], result["network_layers"], result["seconds"], log)


def _refusal(errors: Sequence[Mapping[str, str]], log: str) -> str:
    """The first complaint, in the parser's own words, with the node's name."""
    if not errors:
        return "the file, and does not say why"
    first = errors[0]
    name, operator = first["node"], first["operator"]
    if not name and (parsed := _PARSED_NODE.findall(log)):  # some complaints leave the node to the log
        name, operator = parsed[-1]
    return f"node '{name}' ({operator}): {first['description']} [{first['code']}]"


def _last_error(log: str) -> str:
    lines = log.splitlines()
    errors = [line for line in lines if line.startswith("[E]")] or lines or ["nothing"]
    return errors[-1][:WORDS_SHOWN]


def _last_words(log: Path) -> str:
    lines = log.read_text().splitlines() if log.is_file() else []
    return lines[-1][:WORDS_SHOWN] if lines else "nothing"
