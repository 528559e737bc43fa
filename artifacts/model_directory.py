"""A model directory on disk: the Hugging Face layout, with masks and manifest where hebbline trained it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoints import check_checkpoint, config_file
from .errors import InputError
from .json_files import read_json_object
from .manifest import MANIFEST_FILE, Manifest, read_manifest
from .masks import MASKS_FILE, StoredMasks
from .tokenizer_files import check_tokenizer


@dataclass(frozen=True)
class ModelDirectory:
    """A verified model directory.

    `masks` (bool [N, K] by layer) is None for a plain Hugging Face directory; each is read when it is asked for.
    """

    path: Path
    manifest: Manifest | None
    masks: Mapping[str, NDArray[np.bool_]] | None


def open_model_directory(path: Path) -> ModelDirectory:
    """Check that a directory holds a model with its tokenizer, and that nothing published in it changed.

    Raises:
        InputError: a file is missing or unreadable; UnsupportedModelError: its weights are compressed or quantised;
        DamagedArtifactError: a published file differs.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a directory")
    config_file(path)
    check_tokenizer(path)
    manifest = read_manifest(path) if (path / MANIFEST_FILE).is_file() else None
    if manifest is not None and manifest.kind != "model":
        raise InputError(f"{path} holds an artifact of kind '{manifest.kind}', not a model")
    check_checkpoint(path)
    masks = StoredMasks(path / MASKS_FILE) if (path / MASKS_FILE).is_file() else None
    return ModelDirectory(path, manifest, masks)


def end_tokens(directory: Path, of_config: Any) -> tuple[int, ...]:
    """The tokens that end a text: those of generation_config.json, where there is one, else what config.json names.

    Raises:
        InputError: what is named is no number of a token.
    """
    path, named = directory / "config.json", of_config
    if (directory / "generation_config.json").is_file():
        path = directory / "generation_config.json"
        named = read_json_object(path).get("eos_token_id")
    ids = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    if not all(isinstance(one, int) for one in ids):
        raise InputError(f"{path}: eos_token_id is {named!r}; it is the number of a token, or a list of such numbers")
    return tuple(ids)
