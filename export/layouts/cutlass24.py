"""2:4 weights as sparse tensor cores read them: CUTLASS's compressed values and reordered metadata.

Legend: N out_features, K in_features, E metadata elements a row. A group is four consecutive columns.

Values are [N, K / 2]: two a group, columns ascending. Metadata is two bits a value, its place in the group, low bits
first; an element has the groups of 16 columns in an int16 (16-bit values) or of 32 columns in an int32 (int8 values).
A group with fewer than two non-zeros names zeros too: the free places from the third on, in order.

Elements [N, E] are then laid out for the fragments of `mma.sp`: within 32 rows (int32: 16), row 8 a + b goes to row
4 b + a (int32: 2 b + a); of each 2 x 2 square the corners off the diagonal change places; and the whole is stored by
pairs of columns, each pair row by row. Source: CUTLASS, `reorder_meta` (tools/util/include/cutlass/util/host_reorder.h)
and `ColumnMajorInterleaved<2>`; torch's CUTLASS backend takes the same tensors. The format that cuSPARSELt compresses
to is not published: give it the dense 2:4 weight.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .nm24 import GROUP, SLOTS, check_two_of_four

_LANES = 8


@dataclass(frozen=True)
class _Form:
    """How a value type is stored: the metadata's type, and the rows that are reordered together."""

    element: type[np.signedinteger]
    rows: int

    @property
    def groups(self) -> int:
        """Groups of four columns in one metadata element."""
        return np.dtype(self.element).itemsize * 8 // (2 * SLOTS)


_FORMS = {
    np.dtype(np.float16): _Form(np.int16, 32),
    np.dtype(ml_dtypes.bfloat16): _Form(np.int16, 32),
    np.dtype(np.int8): _Form(np.int32, 16),
}


@dataclass(frozen=True)
class Cutlass24:
    """A compressed weight: `values` [N, K / 2] in float16, bfloat16 or int8, and `metadata` [N, E] as the hardware
    reads it."""

    values: NDArray
    metadata: NDArray[np.signedinteger]


def compress(weight_NK: NDArray) -> Cutlass24:
    """Compress a float16, bfloat16 or int8 weight whose non-zeros are 2:4. A -0 may come back as +0.

    Raises:
        ValueError: another type, a shape that the form cannot take, or more than two non-zeros in a group.
    """
    form = _form(weight_NK.dtype)
    _check_shape(weight_NK.shape, form)
    check_two_of_four(weight_NK != 0)
    rows, columns = weight_NK.shape
    weight_NQ4 = weight_NK.reshape(rows, columns // GROUP, GROUP)
    places_NQS = _places(weight_NQ4 != 0)
    values = np.take_along_axis(weight_NQ4, places_NQS, axis=2).reshape(rows, columns // GROUP * SLOTS)
    return Cutlass24(values, _to_hardware(_elements(places_NQS, form), form))


def decompress(packed: Cutlass24) -> NDArray:
    """The weight [N, K] that `compress` was given.

    Raises:
        ValueError: another type, shapes that do not fit together, or places of a group that do not ascend.
    """
    form = _form(packed.values.dtype)
    rows, half = packed.values.shape
    _check_shape((rows, half * 2), form)
    expected = (rows, half // SLOTS // form.groups)
    if packed.metadata.dtype != form.element or packed.metadata.shape != expected:
        raise ValueError(f"metadata {packed.metadata.dtype} {packed.metadata.shape}, not {form.element} {expected}")
    places_NQS = _places_of_elements(_from_hardware(packed.metadata, form), form)
    if (places_NQS[..., 0] >= places_NQS[..., 1]).any():
        raise ValueError("the places of a group do not ascend")
    weight_NQ4 = np.zeros((rows, half // SLOTS, GROUP), packed.values.dtype)
    np.put_along_axis(weight_NQ4, places_NQS, packed.values.reshape(rows, half // SLOTS, SLOTS), axis=2)
    return weight_NQ4.reshape(rows, half * 2)


def _form(dtype: np.dtype) -> _Form:
    if dtype not in _FORMS:
        raise ValueError(f"values are {dtype}, not float16, bfloat16 or int8")
    return _FORMS[dtype]


def _check_shape(shape: tuple[int, ...], form: _Form) -> None:
    # The squares of the reordering are two elements wide.
    width = form.groups * GROUP * 2
    if len(shape) != 2 or shape[0] % form.rows or shape[1] % width or 0 in shape:
        raise ValueError(f"shape {shape}: rows must be a multiple of {form.rows}, columns of {width}")


def _places(nonzero_NQ4: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The two places [N, Q, 2] that a group's values come from, ascending."""
    # Non-zeros first, then the free places 2, 3, 0, 1.
    rank = np.where(nonzero_NQ4, np.arange(GROUP), np.array([6, 7, 4, 5]))
    return np.sort(np.argsort(rank, axis=2)[..., :SLOTS], axis=2)


def _elements(places_NQS: NDArray[np.int64], form: _Form) -> NDArray[np.signedinteger]:
    """Metadata [N, E] in plain order."""
    places = places_NQS.reshape(len(places_NQS), -1, form.groups * SLOTS).astype(np.uint64)
    shifted = places << (2 * np.arange(form.groups * SLOTS, dtype=np.uint64))
    bits = np.dtype(form.element).itemsize * 8
    return np.bitwise_or.reduce(shifted, axis=2).astype(f"uint{bits}").view(form.element)


def _places_of_elements(elements_NE: NDArray[np.signedinteger], form: _Form) -> NDArray[np.int64]:
    bits = elements_NE.astype(np.int64)[..., None] >> (2 * np.arange(form.groups * SLOTS))
    return (bits & 3).reshape(len(elements_NE), -1, SLOTS)


def _to_hardware(elements_NE: NDArray, form: _Form) -> NDArray:
    rows, width = elements_NE.shape
    by_lane = elements_NE.reshape(rows // form.rows, form.rows // _LANES, _LANES, width)
    squares = by_lane.swapaxes(1, 2).reshape(rows // 2, 2, width // 2, 2)
    return _swap_corners(squares).transpose(2, 0, 1, 3).reshape(rows, width)


def _from_hardware(metadata_NE: NDArray, form: _Form) -> NDArray:
    rows, width = metadata_NE.shape
    squares = _swap_corners(metadata_NE.reshape(width // 2, rows // 2, 2, 2).transpose(1, 2, 0, 3))
    by_lane = squares.reshape(rows // form.rows, _LANES, form.rows // _LANES, width)
    return by_lane.swapaxes(1, 2).reshape(rows, width)


def _swap_corners(squares: NDArray) -> NDArray:
    """Of squares [:, 2, :, 2] the corners off the diagonal change places, which is a transposition."""
    return squares.swapaxes(1, 3)
