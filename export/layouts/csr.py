"""CsrLinear: compressed sparse rows.

Legend: N out_features, K in_features, Z links. Canonical tensors: `values` float [Z], row-major; `row_offsets`
int32 [N + 1]; `columns` [Z], ascending in each row, uint16 where K <= 65536, else int32.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .functions import constant, in_features_constant, linear_tail, make_function
from .layout import Tensors, check_mask_covers

_UINT16_COLUMNS = 1 << 16


class CsrLayout:
    """Row offsets and columns: the smallest layout below about 3% density."""

    name = "csr"
    op_type = "CsrLinear"
    tensor_names = ("values", "row_offsets", "columns")

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero or int32 cannot count the links."""
        check_mask_covers(weight_NK, mask_NK)
        offsets = np.concatenate([[0], np.cumsum(mask_NK.sum(axis=1, dtype=np.int64))])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"{offsets[-1]} links are more than int32 row offsets can count")
        column_type = np.uint16 if mask_NK.shape[1] <= _UINT16_COLUMNS else np.int32
        columns_Z = np.nonzero(mask_NK)[1].astype(column_type)
        return {"values": weight_NK[mask_NK], "row_offsets": offsets.astype(np.int32), "columns": columns_Z}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where offsets, columns and values do not fit together."""
        values_Z, offsets = tensors["values"], tensors["row_offsets"].astype(np.int64)
        columns_Z = tensors["columns"].astype(np.int64)
        _check_rows(offsets, columns_Z, values_Z.shape[0], in_features)
        rows_Z = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        mask_NK = np.zeros((len(offsets) - 1, in_features), bool)
        mask_NK[rows_Z, columns_Z] = True
        weight_NK = np.zeros(mask_NK.shape, values_Z.dtype)
        weight_NK[rows_Z, columns_Z] = values_Z
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int, value_bytes: int) -> int:
        """Four bytes a row, and a value and a column a link."""
        column_bytes = 2 if in_features <= _UINT16_COLUMNS else 4
        return 4 * (out_features + 1) + links * (value_bytes + column_bytes)

    def function(self) -> onnx.FunctionProto:
        """A mark at each row's start, summed along the links, is each link's row; scatter the values there."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            constant("last", [-1], np.int64),
            constant("end", [np.iinfo(np.int64).max], np.int64),
            constant("second", [1], np.int64),
            constant("axis", 0, np.int64),
            constant("zero", [0], np.float32),
            node("Cast", ["row_offsets"], ["offsets"], to=TensorProto.INT64),
            node("Slice", ["offsets", "second", "last"], ["row_starts"]),
            node("Shape", ["values"], ["Z"]),
            # One place more than there are links: empty rows at the end start there.
            node("Add", ["Z", "second"], ["Z_padded"]),
            node(
                "ConstantOfShape", ["Z_padded"], ["no_marks"], value=helper.make_tensor("", TensorProto.INT64, [1], [0])
            ),
            node("Shape", ["row_starts"], ["starts_shape"]),
            node("Expand", ["second", "starts_shape"], ["ones"]),
            node("ScatterElements", ["no_marks", "row_starts", "ones"], ["marks"], axis=0, reduction="add"),
            node("CumSum", ["marks", "axis"], ["rows_padded"]),
            node("Slice", ["rows_padded", "first", "Z"], ["rows"]),
            node("Cast", ["columns"], ["columns_int64"], to=TensorProto.INT64),
            node("Mul", ["rows", "K"], ["row_places"]),
            node("Add", ["row_places", "columns_int64"], ["places"]),
            node("Shape", ["row_offsets"], ["offsets_shape"]),
            node("Sub", ["offsets_shape", "second"], ["N_rows"]),
            node("Mul", ["N_rows", "K"], ["weight_count"]),
            node("CastLike", ["zero", "values"], ["zero_value"]),
            node("Expand", ["zero_value", "weight_count"], ["zeros_flat"]),
            node("ScatterElements", ["zeros_flat", "places", "values"], ["weight_flat"], axis=0),
            *linear_tail(),
        ]
        return make_function(self.op_type, ("X", *self.tensor_names, "bias"), nodes)


def _check_rows(offsets: NDArray, columns_Z: NDArray, links: int, in_features: int) -> None:
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != links or (np.diff(offsets) < 0).any():
        raise ValueError(f"row_offsets do not run from 0 up to {links} values")
    if columns_Z.shape != (links,) or (links and not 0 <= columns_Z.min() <= columns_Z.max() < in_features):
        raise ValueError(f"columns are not {links} places below {in_features}")
    ascending = np.diff(columns_Z) > 0
    ascending[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < links)] - 1] = True
    if not ascending.all():
        raise ValueError("columns do not ascend in every row")
