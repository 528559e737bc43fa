"""Value types: how the numbers of a packed layer are stored, and how X is rounded to meet them.

Legend: N out_features, K in_features, S stored values, G groups of columns that share a scale, T tokens.

| type | `values` | `scales` | X is rounded to |
|---|---|---|---|
| float32 | float32 [S], bit for bit | - | itself |
| bfloat16 | bfloat16 [S], to nearest even | - | bfloat16 |
| int8 | int8 [S] in [-127, 127] | float32 [N] | int8, each token by its largest magnitude / 127 |
| int4 | uint8 [ceil(S / 2)], two in a byte | float32 [N, G] | int8, as above |

A byte of int4 holds two values of [-7, 7] in two's complement, low half first; an unused half is 0.
With `scales` goes `activation_scale`, float32 [1]: the one scale of X for all tokens, or 0, which `encode` writes: each
token has its own. A weight of the last two types is its integer times its scale. G follows from a group's width, a
multiple of 64 columns: width = 64 ceil(K / (64 G)), and `scales` is valid only where G = ceil(K / width).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...artifacts.scales import INT4_LARGEST, INT8_LARGEST, group_count, group_width

Tensors = Mapping[str, NDArray]

SCALE_NAMES = ("scales", "activation_scale")
INT8_LEAST = -128
"""Of X, where one scale for all tokens is so small that some number lies there."""


@dataclass(frozen=True)
class Places:
    """Row and column of each stored value, in the order of `values`, and the shape [N, K] of the layer."""

    rows_S: NDArray[np.integer]
    columns_S: NDArray[np.integer]
    shape: tuple[int, ...]


class ValueType(Protocol):
    """A way to store numbers. `name` is what users ask for; ops of this type end in `op_suffix`."""

    name: str
    op_suffix: str
    scaled: bool
    """Whether the tensors SCALE_NAMES belong to it."""
    per_element: int
    """Numbers in one element of `values`."""

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """`values` as a flat tensor, and SCALE_NAMES where the type has them."""

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """The weights [S] that the tensors stand for; raises ValueError where they do not fit the places."""

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """Bytes of `count` values of a layer with so many links, scales included."""


class Float32Values:
    """Exact: what is decoded is what was encoded, bit for bit."""

    name = "float32"
    op_suffix = ""
    scaled = False
    per_element = 1

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`."""
        return {"values": weight_S}

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """See `ValueType.decode`."""
        _check_count(tensors["values"].shape, len(places.rows_S))
        return tensors["values"]

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """See `ValueType.packed_bytes`."""
        return 4 * count


class Float16Values:
    """Half the bytes, of a model in float16: what is decoded is what was encoded. X is float16 itself."""

    name = "float16"
    op_suffix = ""  # as bfloat16
    scaled = False
    per_element = 1

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`."""
        return {"values": weight_S.astype(np.float16)}

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """See `ValueType.decode`."""
        _check_count(tensors["values"].shape, len(places.rows_S))
        return tensors["values"].astype(np.float32)

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """See `ValueType.packed_bytes`."""
        return 2 * count


class BFloat16Values:
    """Half the bytes; X is rounded to bfloat16 too, and products are summed in float32."""

    name = "bfloat16"
    op_suffix = ""  # CastLike tells the two apart in the function, the tensor's type in the kernel
    scaled = False
    per_element = 1

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`."""
        return {"values": weight_S.astype(ml_dtypes.bfloat16)}

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """See `ValueType.decode`."""
        _check_count(tensors["values"].shape, len(places.rows_S))
        return tensors["values"].astype(np.float32)

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """See `ValueType.packed_bytes`."""
        return 2 * count


class Int8Values:
    """A quarter of the bytes: integers with a scale a row, times tokens with a scale each."""

    name = "int8"
    op_suffix = "Int8"
    scaled = True
    per_element = 1

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`."""
        quants_S, scales_NG = _quantise(weight_S, places, 1, INT8_LARGEST)
        return {"values": quants_S, "scales": scales_NG[:, 0], "activation_scale": np.zeros(1, np.float32)}

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """See `ValueType.decode`."""
        _check_count(tensors["values"].shape, len(places.rows_S))
        scales_N = tensors["scales"]
        if scales_N.shape != places.shape[:1]:
            raise ValueError(f"scales of shape {scales_N.shape} for {places.shape[0]} rows")
        return tensors["values"].astype(np.float32) * scales_N[places.rows_S]

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """See `ValueType.packed_bytes`."""
        return count + 4 * shape[0] + 4


class Int4Values:
    """An eighth of the bytes: integers with a scale for each group of columns of each row."""

    name = "int4"
    op_suffix = "Int4"
    scaled = True
    per_element = 2

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`."""
        groups = group_count(places.shape, int(np.count_nonzero(weight_S)))
        quants_S, scales_NG = _quantise(weight_S, places, groups, INT4_LARGEST)
        return {"values": pack_nibbles(quants_S), "scales": scales_NG, "activation_scale": np.zeros(1, np.float32)}

    def decode(self, tensors: Tensors, places: Places) -> NDArray[np.float32]:
        """See `ValueType.decode`."""
        quants_S = unpack_nibbles(tensors["values"], len(places.rows_S))
        scales_NG = tensors["scales"]
        rows, columns = places.shape
        if scales_NG.ndim != 2 or scales_NG.shape[0] != rows:
            raise ValueError(f"scales of shape {scales_NG.shape} for {rows} rows")
        groups = scales_NG.shape[1]
        if groups < 1 or groups != -(-columns // group_width(columns, groups)):
            raise ValueError(f"{groups} groups of scales do not divide {columns} columns")
        return quants_S.astype(np.float32) * scales_NG[places.rows_S, _groups_of(places, groups)]

    def packed_bytes(self, count: int, shape: tuple[int, ...], links: int) -> int:
        """See `ValueType.packed_bytes`."""
        return -(-count // 2) + 4 * shape[0] * group_count(shape, links) + 4


VALUE_TYPES: dict[str, ValueType] = {
    values.name: values for values in (Float32Values(), BFloat16Values(), Int8Values(), Int4Values())
}


def pack_nibbles(quants_S: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Integers in [-8, 7] to uint8 [ceil(S / 2)], low half first."""
    halves = np.zeros(-(-len(quants_S) // 2) * 2, np.uint8)
    halves[: len(quants_S)] = quants_S.view(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The first `count` integers of what `pack_nibbles` wrote.

    Raises:
        ValueError: there are more or fewer bytes than `count` takes, or an unused half is not 0.
    """
    _check_count(packed.shape, -(-count // 2))
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    if halves[count:].any():
        raise ValueError("the unused half of the last byte is not 0")
    return (halves[:count] ^ 8).astype(np.int8) - np.int8(8)


def _check_count(shape: tuple[int, ...], count: int) -> None:
    if shape != (count,):
        raise ValueError(f"values of shape {shape}, not {(count,)}")


def _groups_of(places: Places, groups: int) -> NDArray[np.integer]:
    return places.columns_S // group_width(places.shape[1], groups)


def _quantise(
    weight_S: NDArray[np.float32], places: Places, groups: int, largest: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers [S] in [-largest, largest], and the scales [N, G] that take the largest weight of a group there."""
    scales_NG = np.zeros((places.shape[0], groups), np.float32)
    group_S = _groups_of(places, groups)
    np.maximum.at(scales_NG, (places.rows_S, group_S), np.abs(weight_S))
    scales_NG /= np.float32(largest)
    scale_S = scales_NG[places.rows_S, group_S]
    # A weight so small that its scale rounds to 0 is 0.
    quants_S = np.divide(weight_S, scale_S, out=np.zeros_like(weight_S), where=scale_S > 0)
    return np.clip(np.rint(quants_S), -largest, largest).astype(np.int8), scales_NG
