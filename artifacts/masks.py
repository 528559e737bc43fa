"""Masks on disk: one bit a link, rows padded to whole bytes, little bit order.

Legend: N out_features, K in_features, P = ceil(K / 8) bytes a row.

`masks.safetensors` holds two tensors a layer: `<layer>.mask` (uint8 [N, P]: bit k % 8 of byte k // 8 is link k)
and `<layer>.shape` (int64 [2]: N, K). A mask is stored on its own because an active weight may be exactly 0.
"""

from collections.abc import Mapping
from pathlib import Path

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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedArtifactError(f"{path}: cannot read the masks: {error}") from error
    layers = [name.removesuffix(".mask") for name in tensors if name.endswith(".mask")]
    return {layer: _load_mask(path, tensors, layer) for layer in layers}


def _load_mask(path: Path, tensors: Mapping[str, NDArray], layer: str) -> NDArray[np.bool_]:
    packed_NP, shape = tensors[f"{layer}.mask"], tensors.get(f"{layer}.shape")
    if shape is None or shape.shape != (2,) or packed_NP.shape[:1] != (int(shape[0]),):
        raise DamagedArtifactError(f"{path}: layer '{layer}' has no shape that fits its mask")
    try:
        return unpack_mask(packed_NP, int(shape[1]))
    except ValueError as error:
        raise DamagedArtifactError(f"{path}: layer '{layer}': {error}") from error
