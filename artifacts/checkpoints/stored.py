"""The parameters of a model as its checkpoint has them, read one at a time: no more than one is in memory.

Legend: N out_features, K in_features.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from .expansion import DROPPED, PARTS, expand_layer, part_of
from .files import WeightFiles

_MASK_PARTS = ("bitmask", "weight_mask")
_MOST_KEPT = 256 << 20
"""Bytes of a parameter that is kept until the next one is read; an embedding may be larger, and is read again."""


class _Read(NamedTuple):
    name: str
    value: Tensor
    mask: Tensor | None


class StoredParameters:
    """The parameters of a checkpoint by the names that a model has for them.

    `found` says what does not fit, as `check_weights_fit` takes it: names that the checkpoint lacks, names that the
    model does not know, and shapes that differ.

    Args:
        path: a directory with weights in any form that `load_model` reads.
        shapes: of the model's parameters by name, turned ones as they are stored.
        prefix: what the names of the model within its head begin with, which a checkpoint may leave out or add.
        turned: weights that are stored as [K, N], and read as [N, K].
        ignored: patterns of names that the model does without.
        renamed: patterns of parts of names, and what stands for them in the model's.

    Raises:
        InputError: there are no weights, or a file of them cannot be read.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        prefix: str = "",
        turned: Collection[str] = (),
        ignored: Iterable[str] = (),
        renamed: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._path = path
        self._files = WeightFiles(path)
        self._turned = frozenset(turned)
        self._parts: dict[str, dict[str, str]] = {}
        self._renamed = list(renamed)
        self._last: _Read | None = None
        self.found = self._assign(shapes, prefix, list(ignored))

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def read(self, name: str) -> Tensor:
        """A parameter in float32, a turned one as [N, K].

        Raises:
            InputError, UnsupportedModelError: it is stored in a way that cannot be read; the tensor is named.
        """
        return self._read(name).value

    def mask(self, name: str) -> Tensor | None:
        """The mask, bool [N, K], that the checkpoint has beside a weight; None where it has none.

        Raises:
            InputError, UnsupportedModelError: as `read`.
        """
        return self._read(name).mask if self.has_mask(name) else None

    def has_mask(self, name: str) -> bool:
        """Whether the checkpoint has a mask beside a weight."""
        return any(part in self._parts[name] for part in _MASK_PARTS)

    def rename(self, name: str, other: str) -> None:
        """Let the parameter `other`, which the checkpoint lacks, be `name`."""
        self._parts[other] = self._parts[name]

    def _assign(self, shapes: Mapping[str, tuple[int, ...]], prefix: str, ignored: list[str]) -> dict[str, list[Any]]:
        """Say which tensors each parameter is made of, and what is left on either side."""
        expanded = any(part_of(name) is not None for name in self._files.names)
        unexpected = []
        for stored in self._files.names:
            named = part_of(stored)
            wanted, part = (f"{named[0]}.weight", named[1]) if named else (stored, stored.rpartition(".")[2])
            for pattern, replacement in self._renamed:
                wanted = re.sub(pattern, replacement, wanted)
            found = next((name for name in _names(wanted, prefix) if name in shapes), None)
            if found is not None:
                self._parts.setdefault(found, {})[part] = stored
            elif not (expanded and part in DROPPED) and not any(re.search(one, stored) for one in ignored):
                unexpected.append(stored)
        plain = {name: one for name in self._parts if (one := self._plain(name)) is not None}
        stored_shapes = {name: self._files.shape(one) for name, one in plain.items()}
        differing = [(name, shape, shapes[name]) for name, shape in stored_shapes.items() if shape != shapes[name]]
        missing = [name for name in shapes if name not in self._parts]
        return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": differing}

    def _plain(self, name: str) -> str | None:
        """The tensor that a parameter is, where it is one as it stands."""
        parts = self._parts[name]
        return next(iter(parts.values())) if not any(part in PARTS for part in parts) else None

    def _read(self, name: str) -> _Read:
        # The weight of a layer is asked for with its mask, and once for each of the projections that it may hold.
        if self._last is not None and self._last.name == name:
            return self._last
        self._last = None
        made = self._made(name)
        if made.value.nbytes <= _MOST_KEPT:
            self._last = made
        return made

    def _made(self, name: str) -> _Read:
        stored = self._plain(name)
        try:
            if stored is not None:
                value, mask = self._files.tensor(stored), None
            else:
                parts = {part: self._files.tensor(tensor) for part, tensor in self._parts[name].items()}
                _, value, mask = expand_layer(name.removesuffix(".weight"), parts)
        except (InputError, UnsupportedModelError) as error:
            raise type(error)(f"{self._path}: {error}") from error
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"{self._path}: tensor '{name}' has the type {kind}, no floating-point number")
        if name in self._turned:
            value, mask = value.T, None if mask is None else mask.T
        return _Read(name, value.to(torch.float32).contiguous(), mask)


def _names(stored: str, prefix: str) -> tuple[str, ...]:
    """What a model may call a tensor of a checkpoint."""
    return stored, f"{prefix}.{stored}", stored.removeprefix(f"{prefix}.")
