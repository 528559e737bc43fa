"""Packed weights back to matrices: what shows that a form holds a weight bit for bit.

Legend: N out_features, K in_features, Z links, G = ceil(K / 4) groups of four columns, b block size.

The tensors are read as a plugin takes them (`plugins.plugin_tensors`): values as they are, integers as int32 words of
the same bytes, so that what is decoded can come from a file.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .packing import GROUP, SLOTS, WORD_SLOTS

Tensors = Mapping[str, NDArray]


def unpack_words(form: str, out_features: int, in_features: int, tensors: Tensors) -> NDArray:
    """The weight [N, K] in the type of its values, gap8 in float32; where there is no link it is +0.

    Args:
        form: of `packing`. out_features, in_features: N, and K up to 65,536. tensors: of the form by name, values and
        words.

    Raises:
        KeyError: there is no such form, or a tensor is missing.
    """
    decode = {"bitmask": _bitmask, "csr": _csr, "block": _block, "nm24": _nm24, "gap": _gap, "gap8": _gap8}[form]
    kind = np.float32 if form == "gap8" else tensors["values"].dtype
    weight_NK = np.zeros((out_features, in_features), kind)
    decode(weight_NK, tensors)
    return weight_NK


def _bitmask(weight_NK: NDArray, tensors: Tensors) -> None:
    rows, columns = weight_NK.shape
    row_bytes = -(-columns // 8)
    packed = _bytes(tensors["mask"])[: rows * row_bytes].reshape(rows, row_bytes)
    mask_NK = np.unpackbits(packed, axis=1, bitorder="little", count=columns).astype(bool)
    weight_NK[mask_NK] = tensors["values"][: np.count_nonzero(mask_NK)]


def _csr(weight_NK: NDArray, tensors: Tensors, prefix: str = "", offsets: str = "row_offsets") -> None:
    starts = tensors[offsets][: len(weight_NK) + 1]
    links = int(starts[-1])
    rows_Z = np.repeat(np.arange(len(weight_NK)), np.diff(starts))
    columns_Z = _bytes(tensors[f"{prefix}columns"]).view(np.uint16)[:links]
    weight_NK[rows_Z, columns_Z] = tensors[f"{prefix}values"][:links]


def _block(weight_NK: NDArray, tensors: Tensors) -> None:
    size = tensors["values"].shape[-1]
    rows, columns = (-(-extent // size) for extent in weight_NK.shape)
    starts = tensors["row_offsets"][: rows + 1]
    grid = np.zeros((rows, columns, size, size), weight_NK.dtype)
    block_rows = np.repeat(np.arange(rows), np.diff(starts))
    grid[block_rows, tensors["columns"][: starts[-1]]] = tensors["values"][: starts[-1]]
    whole = grid.transpose(0, 2, 1, 3).reshape(rows * size, columns * size)
    weight_NK[:] = whole[: weight_NK.shape[0], : weight_NK.shape[1]]


def _nm24(weight_NK: NDArray, tensors: Tensors) -> None:
    """The residual's links take places that no slot names."""
    rows, columns = weight_NK.shape
    groups = -(-columns // GROUP)
    row_bytes = -(-groups // 2)
    packed = _bytes(tensors["metadata"])[: rows * row_bytes].reshape(rows, row_bytes)
    codes_NG = np.stack([packed & 15, packed >> 4], axis=2).reshape(rows, -1)[:, :groups]
    first_NG, second_NG = codes_NG % GROUP, codes_NG // GROUP
    slots_NGS = tensors["values"].reshape(rows, groups, SLOTS)
    linked = ((first_NG <= second_NG, first_NG, 0), (first_NG < second_NG, second_NG, 1))
    for is_link_NG, place_NG, slot in linked:
        row, group = np.nonzero(is_link_NG)
        weight_NK[row, group * GROUP + place_NG[row, group]] = slots_NGS[row, group, slot]
    _csr(weight_NK, tensors, "residual_", "residual_offsets")


def _gap(weight_NK: NDArray, tensors: Tensors) -> None:
    _gap_rows(weight_NK, tensors, tensors["values"])


def _gap8(weight_NK: NDArray, tensors: Tensors) -> None:
    _gap_rows(weight_NK, tensors, _bytes(tensors["values"]).view(np.int8))
    weight_NK *= tensors["row_scales"][: len(weight_NK), None]


def _gap_rows(weight_NK: NDArray, tensors: Tensors, values: NDArray) -> None:
    """The columns are sums of steps; padding slots hold 0, and may lie beyond the last column."""
    starts = tensors["row_offsets"][: len(weight_NK) + 1].astype(np.int64) * WORD_SLOTS
    words = _bytes(tensors["gaps"]).view(np.uint32)[: starts[-1] // WORD_SLOTS]
    steps_S = ((words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15).reshape(-1).astype(np.int64) + 1
    rows_S = np.repeat(np.arange(len(weight_NK)), np.diff(starts))
    sums = np.concatenate([[0], np.cumsum(steps_S)])
    columns_S = sums[1:] - sums[starts[:-1]][rows_S] - 1
    inside_S = columns_S < weight_NK.shape[1]
    weight_NK[rows_S[inside_S], columns_S[inside_S]] = values[: starts[-1]][inside_S]


def _bytes(words: NDArray) -> NDArray[np.uint8]:
    return np.ascontiguousarray(words).view(np.uint8)
