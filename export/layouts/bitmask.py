"""BitmaskLinear: one bit a possible link, and the active weights in row-major order.

Legend: N out_features, K in_features, Z links, P = ceil(K / 8). Canonical tensors: `values` [Z], row-major;
`mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k, padding bits 0; and the scales of the value type.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...artifacts.masks import pack_mask, unpack_mask
from .functions import (
    constant,
    float_values,
    in_features_constant,
    linear_tail,
    make_function,
    numbers,
    small_constant,
)
from .layout import check_countable, check_mask_covers, layout_name
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType


class BitmaskLayout:
    """One bit a possible link: with float32 values the smallest layout from about 6% density up."""

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        self.values = values
        self.name = layout_name("bitmask", values)
        self.op_type = "BitmaskLinear" + values.op_suffix
        self.tensor_names = ("values", "mask", *(SCALE_NAMES if values.scaled else ()))

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero or int32 cannot count the links."""
        check_mask_covers(weight_NK, mask_NK)
        check_countable(int(np.count_nonzero(mask_NK)))
        packed = self.values.encode(weight_NK[mask_NK], _places(mask_NK))
        tensors = packed | {"mask": pack_mask(mask_NK)}
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where mask and values do not fit together."""
        mask_NK = unpack_mask(tensors["mask"], in_features)
        weight_NK = np.zeros(mask_NK.shape, np.float32)
        weight_NK[mask_NK] = self.values.decode(tensors, _places(mask_NK))
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """P bytes a row, and the values."""
        mask_bytes = out_features * -(-in_features // 8)
        return mask_bytes + self.values.packed_bytes(links, (out_features, in_features), links)

    def function(self) -> onnx.FunctionProto:
        """Spread the bits over the columns; a running count of them is each link's place in `values`."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            *float_values(self.values),
            *small_constant("two", 2),
            constant("byte_bits", 8, np.int64),
            constant("end", [np.iinfo(np.int64).max], np.int64),
            constant("zero", [0], np.float32),
            numbers("columns", "K0"),
            node("Div", ["columns", "byte_bits"], ["byte_of_column"]),
            node("Mod", ["columns", "byte_bits"], ["bit_of_column"]),
            node("Cast", ["bit_of_column"], ["bit_places"], to=TensorProto.UINT8),
            node("Gather", ["mask", "byte_of_column"], ["bytes_NK"], axis=1),
            node("BitShift", ["bytes_NK", "bit_places"], ["shifted_NK"], direction="RIGHT"),
            node("Mod", ["shifted_NK", "two"], ["bits_NK"]),
            node("Cast", ["bits_NK"], ["counts_NK"], to=TensorProto.INT32),
            node("CumSum", ["counts_NK", "one0"], ["links_in_row"]),
            node("Slice", ["links_in_row", "last", "end", "second"], ["links_of_row"]),
            node("CumSum", ["links_of_row", "zero0"], ["links_before_row"], exclusive=1),
            node("Add", ["links_in_row", "links_before_row"], ["links_so_far"]),
            # Links count from 1: place 0 is that of absent ones, where one zero is put before the values.
            node("Mul", ["links_so_far", "counts_NK"], ["places_NK"]),
            node("Concat", ["zero", "values_float"], ["values_behind_zero"], axis=0),
            node("Gather", ["values_behind_zero", "places_NK"], ["weight_unscaled"]),
            *linear_tail(self.values),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)


def _places(mask_NK: NDArray[np.bool_]) -> Places:
    rows_Z, columns_Z = np.nonzero(mask_NK)
    return Places(rows_Z, columns_Z, mask_NK.shape)
