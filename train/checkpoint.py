"""Checkpoints of a training run: written whole or not at all, verified before use, and free of pickle.

A checkpoint is a directory `step-N` of safetensors and JSON; `checkpoint.json` holds its facts and the SHA-256 of every
other file. It is written under a hidden name, flushed, and renamed: whenever the process dies, the newest `step-N` is
complete. Older ones are renamed to a hidden name before they are removed.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..artifacts import DamagedArtifactError, InputError
from ..artifacts.manifest import file_digest
from ..artifacts.publishing import sync

FACTS_FILE = "checkpoint.json"
SCHEMA_VERSION = 1
_PREFIX = "step-"


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint is of: a step of a recipe, by its digest, on so many processes. `files` maps names to SHA-256.

    `values` are the JSON parts of the state.
    """

    step: int
    recipe_digest: str
    world_size: int
    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class CheckpointWriter:
    """A checkpoint being written into `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file `name`.safetensors."""
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, self.path(name))

    def path(self, name: str) -> Path:
        """Where the safetensors file of this name belongs."""
        return self.directory / f"{name}.safetensors"


@contextmanager
def write_checkpoint(folder: Path, facts: CheckpointFacts, keep: int) -> Iterator[CheckpointWriter]:
    """Write the checkpoint of a step into a folder; when the block ends well it is there, and old ones go.

    Args:
        folder: of the run's checkpoints.
        facts: `files` is filled in here.
        keep: how many of the newest checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staging = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=folder))
    try:
        yield CheckpointWriter(staging)
        files = {path.name: file_digest(path) for path in sorted(staging.iterdir())}
        (staging / FACTS_FILE).write_text(json.dumps(asdict(facts) | {"files": files}))
        for path in (*staging.iterdir(), staging):
            sync(path)
        target = folder / f"{_PREFIX}{facts.step:09d}"
        if target.exists():
            _remove(target)
        staging.rename(target)
        sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        _remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are those that were written."""

    path: Path
    facts: CheckpointFacts

    def has(self, name: str) -> bool:
        """Whether there is a safetensors file of this name."""
        return f"{name}.safetensors" in self.facts.files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the safetensors file `name`.safetensors.

        Raises:
            DamagedArtifactError: the checkpoint has no such file, or it cannot be read.
        """
        path = self.path / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DamagedArtifactError(f"{path} cannot be read: {error}") from error


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the facts of a checkpoint and verify its files.

    Raises:
        DamagedArtifactError: a file is missing, malformed or not the one that was written; the message names it.
    """
    facts_path = path / FACTS_FILE
    try:
        facts = CheckpointFacts(**json.loads(facts_path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedArtifactError(f"{facts_path} is damaged: {error}") from error
    if facts.schema_version != SCHEMA_VERSION:
        raise DamagedArtifactError(f"{facts_path} has schema_version {facts.schema_version}, not {SCHEMA_VERSION}")
    for name, digest in facts.files.items():
        if not (path / name).is_file() or file_digest(path / name) != digest:
            raise DamagedArtifactError(f"{path / name} is missing or not the file that was written")
    return Checkpoint(path, facts)


def open_latest(folder: Path, *, recipe_digest: str, world_size: int, masks: bool) -> Checkpoint:
    """The newest checkpoint of a run, fit to go on from.

    Args:
        folder: of the run's checkpoints.
        recipe_digest: of the recipe that goes on.
        world_size: the processes that go on.
        masks: whether the method has masks, which the checkpoint must then hold.

    Raises:
        InputError: there is none, or it is of another recipe or number of processes, or without masks.
        DamagedArtifactError: a file of it was changed.
    """
    found = checkpoints(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint to resume from; train with --checkpoint.every first")
    checkpoint = open_checkpoint(found[-1])
    if checkpoint.facts.recipe_digest != recipe_digest:
        raise InputError(f"{checkpoint.path} is of another recipe; resume with the recipe and options it began with")
    if checkpoint.facts.world_size != world_size:
        raise InputError(
            f"{checkpoint.path} was written by {checkpoint.facts.world_size} processes, and {world_size} would go on: "
            "the order of the data would change"
        )
    if masks and not checkpoint.has("masks"):
        raise InputError(f"{checkpoint.path} holds no masks: it is not of a sparse run")
    return checkpoint


def _sweep(folder: Path) -> None:
    """Remove what processes that died left behind."""
    for path in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)
