"""The files of weights of a Hugging Face directory: one or in shards, safetensors or torch's."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import InputError, one_line
from ..fetched import check_fetched
from ..json_files import read_json_object

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

    def tensor(self, name: str) -> "Tensor":
        """One tensor, mapped into memory and not read before it is used."""
        with _opened(self._file_of[name]) as read:
            return read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        file = self._file_of[name]
        if file.suffix != ".safetensors":
            return tuple(self.tensor(name).shape)
        with safe_open(file, framework="numpy") as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    def type(self, name: str) -> str:
        """The type of a tensor's values, as safetensors names it: "F32", "BF16", "I8"; the tensor is not read."""
        file = self._file_of[name]
        if file.suffix != ".safetensors":
            return str(self.tensor(name).dtype).removeprefix("torch.")
        with safe_open(file, framework="numpy") as tensors:
            kind: str = tensors.get_slice(name).get_dtype()
            return kind

    def tensors(self) -> Iterator[tuple[str, "Tensor"]]:
        """Each tensor with its name; those of a file are mapped into memory, not read before they are used."""
        for file in self.files:
            with _opened(file) as read:
                for name in (name for name, place in self._file_of.items() if place == file):
                    yield name, read(name)


def is_floating(kind: str) -> bool:
    """Whether the type of a tensor's values, as `WeightFiles.type` names it, is a floating-point number."""
    return kind.lower().startswith(("f", "bf"))


def _shards(index: Path) -> list[Path]:
    placed = read_json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise InputError(f"{index} has no 'weight_map' that says in which file each tensor is")
    names = sorted(set(placed.values()))
    for name in names:
        shard = index.parent / name
        if shard.parent != index.parent or not shard.is_file():
            raise InputError(f"{index} names {name}, which is not there; fetch all files of the model")
    return [index.parent / name for name in names]


def _names(file: Path) -> list[str]:
    try:
        check_fetched(file)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds something else than tensors, such as code, which is never run; save the model's state dict "
            "as safetensors (save_pretrained)"
        ) from error
    except Exception as error:  # what a damaged pickle raises is of no common base
        why = f"{type(error).__name__}: {one_line(error)}" if file.stat().st_size else "the file is empty"
        raise InputError(f"{file} cannot be read as weights that torch saved: {why}") from error
    if not isinstance(tensors, dict) or not all(_is_plain(name, value) for name, value in tensors.items()):
        raise InputError(
            f"{file} is no dictionary of plain tensors by name; save the model's state dict (save_pretrained)"
        )
    return tensors


def _is_plain(name: object, value: object) -> bool:
    """Whether an entry is a tensor with a name, dense, and in memory."""
    import torch

    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(name, str) and is_dense and value.device.type == "cpu"  # type: ignore[attr-defined]
