"""More than one engine in an artifact: those of an earlier export of the same model are copied into it.

An engine of TensorRT is built on a GPU of its generation: exports on several machines, each with the artifact of the
one before, give an artifact for all of their GPUs.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import InputError, read_manifest
from ...runtime.engines import ENGINES_FILE, EngineFacts, read_engines

_ONNX_SUFFIXES = (".onnx", ".data")


@dataclass(frozen=True)
class EarlierEngines:
    """Engines of an artifact, and what it reported of them."""

    artifact: Path
    engines: tuple[EngineFacts, ...]
    reports: tuple[Any, ...]

    def copy(self, staging: Path, new: EngineFacts) -> tuple[EngineFacts, ...]:
        """Copy the engines beside a new one, which takes the place of one of its name; returns those that came."""
        kept = tuple(engine for engine in self.engines if engine.file != new.file)
        for engine in kept:
            shutil.copyfile(self.artifact / engine.file, staging / engine.file)
        return kept


def read_earlier(artifact: Path, portable: Path) -> EarlierEngines:
    """The engines of an artifact whose ONNX is the one that is exported again.

    Args:
        artifact: published earlier.
        portable: the artifact of the ONNX that was exported just now.

    Raises:
        InputError: the artifact holds no engine, or its ONNX is another; DamagedArtifactError: a file differs.
    """
    manifest, exported = read_manifest(artifact), read_manifest(portable)
    engines = read_engines(artifact)
    if not engines:
        raise InputError(f"{artifact} holds no engine to copy: it has no {ENGINES_FILE}")
    for name, facts in manifest.files.items():
        if name.endswith(_ONNX_SUFFIXES) and exported.files.get(name) != facts:
            raise InputError(
                f"{artifact} is of another model or was exported with other options: its {name} is not the one "
                "exported here; its engines cannot be copied into it"
            )
    report = json.loads((artifact / ENGINES_FILE).read_text())["report"]
    return EarlierEngines(artifact, engines, (report, *report.pop("earlier", ())))
