"""CsrLinear: compressed sparse rows.

Legend: N out_features, K in_features, Z links. Canonical tensors: `values` [Z], row-major; `row_offsets` int32
[N + 1]; `columns` [Z], ascending in each row, uint16 where K <= 65536, else int32; and the scales of the value type.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .functions import filled, in_features_constant, linear_tail, make_function
from .layout import check_countable, check_mask_covers, layout_name
from .stored import group_width, halves
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType

_UINT16_COLUMNS = 1 << 16


class CsrLayout:
    """Row offsets and columns: with float32 values the smallest layout below about 6% density."""

    needs_blocks = 0

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        self.values = values
        self.name = layout_name("csr", values)
        self.op_type = "CsrLinear" + values.op_suffix
        self.tensor_names = ("values", "row_offsets", "columns", *(SCALE_NAMES if values.scaled else ()))

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero or int32 cannot count the links."""
        check_mask_covers(weight_NK, mask_NK)
        rows_Z, columns_Z = np.nonzero(mask_NK)
        packed = self.values.encode(weight_NK[mask_NK], Places(rows_Z, columns_Z, mask_NK.shape))
        tensors = packed | {
            "row_offsets": row_offsets(mask_NK.sum(axis=1, dtype=np.int64)),
            "columns": columns_Z.astype(column_type(mask_NK.shape[1])),
        }
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where offsets, columns and values do not fit together."""
        rows_Z, columns_Z = rows_and_columns(tensors, tensors["columns"].size, in_features)
        shape = (len(tensors["row_offsets"]) - 1, in_features)
        values_Z = self.values.decode(tensors, Places(rows_Z, columns_Z, shape))
        mask_NK = np.zeros(shape, bool)
        mask_NK[rows_Z, columns_Z] = True
        weight_NK = np.zeros(shape, np.float32)
        weight_NK[rows_Z, columns_Z] = values_Z
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """Four bytes a row, and a value and a column a link."""
        column_bytes = np.dtype(column_type(in_features)).itemsize
        value_bytes = self.values.packed_bytes(links, (out_features, in_features), links)
        return 4 * (out_features + 1) + links * column_bytes + value_bytes

    def function(self) -> onnx.FunctionProto:
        """A mark at each row's start, summed along the links, is each link's row; scatter the values there.

        All tensors but two, of zeros and of the weight, are as long as there are links: few, so there are no `rounds`.
        """
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            node("Cast", ["columns"], ["columns_int32"], to=TensorProto.INT32),
            *entry_rows("columns_int32"),
            *self._float_links(),
            node("Unsqueeze", ["rows", "second"], ["rows_Z1"]),
            node("Unsqueeze", ["columns_int32", "second"], ["columns_Z1"]),
            node("Concat", ["rows_Z1", "columns_Z1"], ["places_int32"], axis=1),
            node("Cast", ["places_int32"], ["places_Z2"], to=TensorProto.INT64),
            node("Concat", ["N_rows", "K"], ["weight_shape"], axis=0),
            filled("weight_shape", "zeros_NK", 0, np.float32),
            node("ScatterND", ["zeros_NK", "places_Z2", "links_Z"], ["weight_NK"]),
            *linear_tail(self.values, "N_rows"),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)

    def _float_links(self) -> list[onnx.NodeProto]:
        """Nodes that give `links_Z`: the values are scaled while they are few."""
        node = helper.make_node
        if not self.values.scaled:
            return [node("Cast", ["values"], ["links_Z"], to=TensorProto.FLOAT)]
        if self.values.per_element == 1:
            stored = "values"
            scale = [node("Gather", ["scales", "rows"], ["scales_Z"])]
        else:
            stored = "stored_Z"
            scale = [
                *halves("values"),
                node("Reshape", ["halves", "last"], ["stored_even"]),
                node("Slice", ["stored_even", "first", "Z"], [stored]),
                *group_width(),
                node("Cast", ["group_width"], ["group_width_int32"], to=TensorProto.INT32),
                node("Cast", ["G"], ["G_int32"], to=TensorProto.INT32),
                node("Div", ["columns_int32", "group_width_int32"], ["groups_Z"]),
                node("Mul", ["rows", "G_int32"], ["groups_before"]),
                node("Add", ["groups_before", "groups_Z"], ["scale_places"]),
                node("Reshape", ["scales_of_halves", "last"], ["scales_flat"]),
                node("Gather", ["scales_flat", "scale_places"], ["scales_Z"]),
            ]
        return [
            *scale,
            node("Cast", [stored], ["unscaled_Z"], to=TensorProto.FLOAT),
            node("Mul", ["unscaled_Z", "scales_Z"], ["links_Z"]),
        ]


def column_type(columns: int) -> type[np.uint16] | type[np.int32]:
    """The type that numbers so many columns."""
    return np.uint16 if columns <= _UINT16_COLUMNS else np.int32


def row_offsets(counts_N: NDArray[np.int64]) -> NDArray[np.int32]:
    """Running counts from 0; raises ValueError where int32 cannot hold them."""
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    check_countable(int(offsets[-1]))
    return offsets.astype(np.int32)


def rows_and_columns(tensors: Tensors, count: int, bound: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each of `count` entries, from `row_offsets` and `columns`; columns are below `bound`.

    Raises:
        ValueError: offsets or columns are not of the canonical form.
    """
    offsets, columns = tensors["row_offsets"].astype(np.int64), tensors["columns"].astype(np.int64)
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ValueError(f"row_offsets do not run from 0 up to {count}")
    if columns.shape != (count,) or (count and not 0 <= columns.min() <= columns.max() < bound):
        raise ValueError(f"columns are not {count} places below {bound}")
    ascending = np.diff(columns) > 0
    starts = offsets[1:-1]
    ascending[starts[(starts > 0) & (starts < count)] - 1] = True
    if not ascending.all():
        raise ValueError("columns do not ascend in every row")
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), columns


def entry_rows(counted: str) -> list[onnx.NodeProto]:
    """Nodes that give `rows`, the row of each entry by `row_offsets`, int32 [Z]; `Z`, their number (the size of the
    vector `counted`), and `N_rows`, the number of rows, both int64 [1]."""
    node = helper.make_node
    return [
        node("Slice", ["row_offsets", "second", "last"], ["row_starts"]),
        node("Shape", [counted], ["Z"]),
        # One place more than there are entries: empty rows at the end start there.
        node("Add", ["Z", "second"], ["Z_padded"]),
        filled("Z_padded", "no_marks", 0, np.int32),
        node("Shape", ["row_starts"], ["starts_shape"]),
        node("Add", ["starts_shape", "second"], ["N_rows"]),
        filled("starts_shape", "marks_of_rows", 1, np.int32),
        node("ScatterElements", ["no_marks", "row_starts", "marks_of_rows"], ["marks"], axis=0, reduction="add"),
        node("CumSum", ["marks", "zero0"], ["rows_padded"]),
        node("Slice", ["rows_padded", "first", "Z"], ["rows"]),
    ]
