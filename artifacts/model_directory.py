"""A model directory on disk: the Hugging Face layout, with masks and manifest where hebbline trained it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checkpoints import check_checkpoint
from .errors import InputError
from .manifest import MANIFEST_FILE, Manifest, read_manifest
from .masks import MASKS_FILE, load_masks
from .tokenizer_files import check_tokenizer


@dataclass(frozen=True)
class ModelDirectory:
    """A verified model directory. `masks` (bool [N, K] by layer) is None for a plain Hugging Face directory."""

    path: Path
    manifest: Manifest | None
    masks: dict[str, NDArray[np.bool_]] | None


def open_model_directory(path: Path) -> ModelDirectory:
    """Check that a directory holds a model with its tokenizer, and that nothing published in it changed.

    Raises:
        InputError: a file is missing or unreadable; UnsupportedModelError: its weights are compressed or quantised;
        DamagedArtifactError: a published file differs.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a directory")
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is not a model directory: it has no config.json")
    check_tokenizer(path)
    manifest = read_manifest(path) if (path / MANIFEST_FILE).is_file() else None
    if manifest is not None and manifest.kind != "model":
        raise InputError(f"{path} holds an artifact of kind '{manifest.kind}', not a model")
    check_checkpoint(path)
    masks = load_masks(path / MASKS_FILE) if (path / MASKS_FILE).is_file() else None
    return ModelDirectory(path, manifest, masks)
