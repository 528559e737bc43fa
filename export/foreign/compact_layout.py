"""CompactLinear: a layer whose links lie in some rows and some columns only, as a smaller dense product.

Structured pruning leaves such weights. Their empty rows and columns are removed, and the rest is multiplied densely:
it is no use to pay for it as for links that lie anywhere. There is no kernel of ours in it: the function is the form.

Legend: N out_features, K in_features, R rows with links, C columns with links.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..layouts.layout import DOMAIN, OPSET, check_mask_covers
from ..layouts.values import VALUE_TYPES, Tensors

_INDEX_BYTES = 4
_FULL_ENOUGH = 0.6
"""Density of the rest above which it is multiplied densely, and below which the sparse layouts are tried alone."""
_WORTH = 0.9
"""Share of the weight that the rest may be, for its removal to be worth a try."""


class CompactLayout:
    """A `Layout`, but for the bias, which its function does not take.

    Canonical tensors: `weight` float32 [C, R (+ 1)], the rest of W^T, with a column of zeros at the end where rows are
    empty; `columns` int32 [C], where the rest's columns stand in X; `rows` int32 [N], for each output the column of
    `weight`, of zeros where the row is empty. `columns` and `rows` are absent where none is empty.
    """

    needs_blocks = 0
    values = VALUE_TYPES["float32"]

    def __init__(self, mask_NK: NDArray[np.bool_]) -> None:
        self._rows_R, self._columns_C = np.flatnonzero(mask_NK.any(axis=1)), np.flatnonzero(mask_NK.any(axis=0))
        out_features, in_features = self._shape = mask_NK.shape
        self._fewer_rows, self._fewer_columns = len(self._rows_R) < out_features, len(self._columns_C) < in_features
        parts = "Rows" * self._fewer_rows + "Columns" * self._fewer_columns
        self.name = "compact"
        self.op_type = f"Compact{parts}Linear"
        optional = (("columns", self._fewer_columns), ("rows", self._fewer_rows))
        self.tensor_names = ("weight", *(name for name, there in optional if there))

    @property
    def description(self) -> str:
        """What was found, for the report."""
        rows, columns = self._shape
        return (
            f"{rows - len(self._rows_R):,} of {rows:,} rows and {columns - len(self._columns_C):,} of {columns:,} "
            "columns are empty"
        )

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """See `Layout.encode`."""
        check_mask_covers(weight_NK, mask_NK)
        rest_CR = np.ascontiguousarray(weight_NK[np.ix_(self._rows_R, self._columns_C)].T)
        rows_N = np.full(len(weight_NK), len(self._rows_R), np.int32)
        rows_N[self._rows_R] = np.arange(len(self._rows_R))
        if self._fewer_rows:
            rest_CR = np.pad(rest_CR, ((0, 0), (0, 1)))
        tensors = {"weight": rest_CR, "columns": self._columns_C.astype(np.int32), "rows": rows_N}
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """See `Layout.decode`; the mask is that of the non-zeros."""
        weight_KR = np.zeros((in_features, tensors["weight"].shape[1]), np.float32)
        weight_KR[tensors.get("columns", np.arange(in_features))] = tensors["weight"]
        weight_NK = np.ascontiguousarray(weight_KR.T[tensors["rows"]] if "rows" in tensors else weight_KR.T)
        return weight_NK, weight_NK != 0

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """See `Layout.packed_bytes`."""
        del links
        weights = len(self._columns_C) * (len(self._rows_R) + self._fewer_rows)
        indices = len(self._columns_C) * self._fewer_columns + out_features * self._fewer_rows
        return 4 * weights + _INDEX_BYTES * indices

    def function(self) -> onnx.FunctionProto:
        """Take the columns of X, multiply, and put the results where their rows stand."""
        node, nodes, x, y = helper.make_node, [], "X", "Y"
        if self._fewer_columns:
            nodes.append(node("Gather", ["X", "columns"], ["x_C"], axis=-1))
            x = "x_C"
        if self._fewer_rows:
            y = "y_R"
        nodes.append(node("MatMul", [x, "weight"], [y]))
        if self._fewer_rows:
            nodes.append(node("Gather", ["y_R", "rows"], ["Y"], axis=-1))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_function(
            DOMAIN, self.op_type, ["X", *self.tensor_names], ["Y"], nodes, opsets, ["in_features"]
        )


def compact_layout(mask_NK: NDArray[np.bool_]) -> CompactLayout | None:
    """The layout, where empty rows and columns are a good part of the weight and the rest is full enough."""
    rows, columns = int(mask_NK.any(axis=1).sum()), int(mask_NK.any(axis=0).sum())
    rest = rows * columns
    if rest == 0 or rest > _WORTH * mask_NK.size or np.count_nonzero(mask_NK) < _FULL_ENOUGH * rest:
        return None
    return CompactLayout(mask_NK)
