"""Masks on disk: one bit a link, rows padded to whole bytes, little bit order.

Legend: N out_features, K in_features, P = ceil(K / 8) bytes a row.

`masks.safetensors` holds two tensors a layer: `<layer>.mask` (uint8 [N, P]: bit k % 8 of byte k // 8 is link k)
and `<layer>.shape` (int64 [2]: N, K). A mask is stored on its own because an active weight may be exactly 0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedArtifactError

MASKS_FILE = "masks.safetensors"


def pack_mask(mask_NK: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack a bool [N, K] mask to uint8 [N, ceil(K / 8)], little bit order, padding bits 0."""
    return np.packbits(mask_NK, axis=1, bitorder="little")


def unpack_mask(packed_NP: NDArray[np.uint8], in_features: int) -> NDArray[np.bool_]:
    """Unpack uint8 [N, ceil(K / 8)] to bool [N, K].

    Raises:
        ValueError: the row length does not fit `in_features`, or a padding bit is set.
    """
    if packed_NP.ndim != 2 or packed_NP.shape[1] != -(-in_features // 8):
        raise ValueError(f"packed mask of shape {packed_NP.shape} does not hold rows of {in_features} links")
    bits = np.unpackbits(packed_NP, axis=1, bitorder="little").astype(bool)
    if bits[:, in_features:].any():
        raise ValueError("packed mask has padding bits set")
    return bits[:, :in_features]


def save_masks(path: Path, masks: Mapping[str, NDArray[np.bool_]]) -> None:
    """Write bool [N, K] masks by layer name to a safetensors file."""
    from safetensors.numpy import save_file  # where nothing is read or written, it need not be installed

    tensors: dict[str, NDArray] = {}
    for layer, mask_NK in masks.items():
        tensors[f"{layer}.mask"] = pack_mask(mask_NK)
        tensors[f"{layer}.shape"] = np.array(mask_NK.shape, dtype=np.int64)
    save_file(tensors, path)


def load_masks(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Read the bool [N, K] masks by layer name that `save_masks` wrote.

    Raises:
        DamagedArtifactError: the file cannot be read, or a layer's tensors do not fit together.
    """
    return dict(StoredMasks(path))


class StoredMasks(Mapping[str, NDArray[np.bool_]]):
    """The bool [N, K] masks by layer name that `save_masks` wrote, each read when it is asked for and not kept.

    Raises:
        DamagedArtifactError: the file cannot be read; on reading a layer, its tensors do not fit together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as tensors:
            self._layers = [name.removesuffix(".mask") for name in list(tensors.keys()) if name.endswith(".mask")]

    def __getitem__(self, layer: str) -> NDArray[np.bool_]:
        if layer not in self._layers:
            raise KeyError(layer)
        with self._opened() as tensors:
            packed_NP = tensors.get_tensor(f"{layer}.mask")
            has_shape = f"{layer}.shape" in list(tensors.keys())
            shape = tensors.get_tensor(f"{layer}.shape") if has_shape else None
        if shape is None or shape.shape != (2,) or packed_NP.shape[:1] != (int(shape[0]),):
            raise DamagedArtifactError(f"{self._path}: layer '{layer}' has no shape that fits its mask")
        try:
            return unpack_mask(packed_NP, int(shape[1]))
        except ValueError as error:
            raise DamagedArtifactError(f"{self._path}: layer '{layer}': {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="numpy") as tensors:
                yield tensors
        except (OSError, SafetensorError) as error:
            raise DamagedArtifactError(f"{self._path}: cannot read the masks: {error}") from error
