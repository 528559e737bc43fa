"""More than one engine in an artifact: those of an earlier export of the same model are carried over.

An engine of TensorRT is built on a GPU of its generation: exports on several machines, each with the artifact of the
one before, give an artifact for all of their GPUs.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import InputError, read_manifest
from ...artifacts.manifest import file_digest
from ...serve.engine.engines import ENGINES_FILE, EngineFacts, read_engines

_ONNX_SUFFIXES = (".onnx", ".data")


@dataclass(frozen=True)
class Carried:
    """Engines of an earlier artifact, and what it reported of them."""

    engines: tuple[EngineFacts, ...] = ()
    reports: tuple[Any, ...] = ()


def carry_engines(earlier: Path, staging: Path, new: EngineFacts) -> Carried:
    """Copy the engines of an artifact beside a new one, which takes the place of an earlier one of its name.

    Args:
        earlier: a published artifact.
        staging: the directory of the artifact to be, with its ONNX.
        new: the engine that was just built.

    Raises:
        InputError: the artifact holds no engine, or its ONNX is not this one's; DamagedArtifactError: a file differs.
    """
    manifest = read_manifest(earlier)
    engines = read_engines(earlier)
    if not engines:
        raise InputError(f"{earlier} holds no engine to carry over: it has no {ENGINES_FILE}")
    for name in (name for name in manifest.files if name.endswith(_ONNX_SUFFIXES)):
        if not (staging / name).is_file() or file_digest(staging / name) != manifest.files[name].sha256:
            raise InputError(
                f"{earlier} is of another model or was exported with other options: its {name} is not the one exported "
                "here; its engines cannot be carried over"
            )
    kept = tuple(engine for engine in engines if engine.file != new.file)
    for engine in kept:
        shutil.copyfile(earlier / engine.file, staging / engine.file)
    report = json.loads((earlier / ENGINES_FILE).read_text())["report"]
    return Carried(kept, (report, *report.pop("earlier", ())))
