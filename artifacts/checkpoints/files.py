"""The files of weights of a Hugging Face directory: one or in shards, safetensors or torch's."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights are looked for, in the order of transformers: the first that is there is the one that counts."""


class WeightFiles:
    """The tensors of a model directory by name, read one at a time.

    Args:
        path: the directory.

    Raises:
        InputError: there are no weights, an index is damaged, or a file that it names is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        found = next((path / name for name in _NAMES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"{path} has no weights: none of {', '.join(_NAMES)} is there")
        self.files = _shards(found) if found.suffix == ".json" else [found]
        self._file_of = {name: file for file in self.files for name in _names(file)}

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order of the files."""
        return list(self._file_of)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def tensors(self) -> Iterator[tuple[str, "Tensor"]]:
        """Each tensor with its name; those of a file are mapped into memory, not read before they are used."""
        for file in self.files:
            with _opened(file) as read:
                for name in (name for name, place in self._file_of.items() if place == file):
                    yield name, read(name)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: cannot read the list of shards: {error!r}") from error
    shards = [index.parent / str(name) for name in names]
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            raise InputError(f"{index} names {shard.name}, which is not there")
    return shards


def _names(file: Path) -> list[str]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as tensors:
                return list(tensors.keys())
        return list(_torch_file(file))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot read the weights: {error}") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            yield tensors.get_tensor
    else:
        yield _torch_file(file).__getitem__


def _torch_file(file: Path) -> dict[str, "Tensor"]:
    import torch

    try:
        # What torch wrote before version 1.6 is no zip archive, and cannot be mapped into memory.
        tensors = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{file}: cannot read the weights: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"{file} is no dictionary of tensors; save the model's state dict (save_pretrained)")
    return tensors
