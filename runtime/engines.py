"""`engines.json`: the engines that an artifact holds beside its ONNX, and which of them a machine runs."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifacts import DamagedArtifactError
from .static_cache import StepLimits

ENGINES_FILE = "engines.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EngineFacts:
    """One engine file.

    `runtime` is "tensorrt-rtx" or "tensorrt", `version` the one that built it, `compute_capabilities` the GPU
    generations that it was built for ("8.6"), `precision` that of weights, caches and sums' storage, `limits` the
    largest steps that it takes.
    """

    file: str
    runtime: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    limits: StepLimits


@dataclass(frozen=True)
class Gpu:
    """A GPU by name and compute capability ("8.6")."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class EngineChoice:
    """The engine to run, or None and the reason."""

    engine: EngineFacts | None
    reason: str


def write_engines(directory: Path, engines: Sequence[EngineFacts], report: Mapping[str, Any]) -> None:
    """Write `engines.json`: the engines, and what was found out about them as plain values."""
    content = {
        "schema_version": _SCHEMA_VERSION,
        "engines": [asdict(engine) for engine in engines],
        "report": dict(report),
    }
    (directory / ENGINES_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_engines(artifact: Path) -> tuple[EngineFacts, ...]:
    """The engines of a verified artifact; none where it has no `engines.json`.

    Raises:
        DamagedArtifactError: the file is malformed, of another schema, or names a file that is not there.
    """
    path = artifact / ENGINES_FILE
    if not path.is_file():
        return ()
    try:
        content = json.loads(path.read_text())
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']} is not {_SCHEMA_VERSION}, the one read here")
        engines = tuple(_engine(values) for values in content["engines"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifactError(f"{path} is damaged: {error}") from error
    for engine in engines:
        if Path(engine.file).name != engine.file or not (artifact / engine.file).is_file():
            raise DamagedArtifactError(f"{path} names the engine '{engine.file}', which is not beside it")
    return engines


def choose_engine(engines: Sequence[EngineFacts], gpu: Gpu | None, runtimes: Mapping[str, str]) -> EngineChoice:
    """The engine for a GPU: the first that was built for its generation by a runtime that is installed.

    Args:
        engines: in order of preference. gpu: None where the machine has none. runtimes: version of each installed one.
    """
    if not engines:
        return EngineChoice(None, "the artifact holds no engine")
    if gpu is None:
        return EngineChoice(None, "there is no NVIDIA GPU here")
    refusals = []
    for engine in engines:
        refusal = _refusal(engine, gpu, runtimes)
        if refusal is None:
            return EngineChoice(engine, f"{engine.file} was built for {gpu.name} ({gpu.compute_capability})")
        refusals.append(f"{engine.file} {refusal}")
    return EngineChoice(None, "; ".join(refusals))


def is_installed(module: str) -> bool:
    """Whether a package of this name can be imported. A mere folder of the name, which Python takes for one, is not."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _refusal(engine: EngineFacts, gpu: Gpu, runtimes: Mapping[str, str]) -> str | None:
    """Why an engine cannot run; an engine is tied to the generation and to the very version that built it."""
    if gpu.compute_capability not in engine.compute_capabilities:
        built_for = ", ".join(engine.compute_capabilities)
        return f"was built for compute capability {built_for}, and {gpu.name} has {gpu.compute_capability}"
    if engine.runtime not in runtimes:
        return f"needs {engine.runtime} {engine.version}, which is not installed"
    if runtimes[engine.runtime] != engine.version:
        return f"needs {engine.runtime} {engine.version}, and {runtimes[engine.runtime]} is installed"
    return None


def _engine(values: Mapping[str, Any]) -> EngineFacts:
    capabilities = tuple(str(capability) for capability in values["compute_capabilities"])
    limits = StepLimits(**values["limits"])
    return EngineFacts(**{**values, "compute_capabilities": capabilities, "limits": limits})
