"""BitmaskLinear: one bit a possible link, and the active weights in row-major order.

Legend: N out_features, K in_features, Z links, P = ceil(K / 8). Canonical tensors: `values` [Z], row-major;
`mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k, padding bits 0; and the scales of the value type.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...artifacts.masks import pack_mask, unpack_mask
from .byte_places import all_bytes, bytes_of, linear_by_bytes
from .functions import constant, in_features_constant, make_function
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
        """A running count of the bits of bytes is the number of values before each."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            *bytes_of("mask"),
            *_bit_table(),
            constant("last_column", [7], np.int64),
            node("Gather", ["bits_so_far", "last_column"], ["bit_counts"], axis=1),
            node("Gather", ["bit_counts", "bytes_B"], ["counts_B1"]),
            node("CumSum", ["counts_B1", "zero0"], ["before_B1"], exclusive=1),
            *linear_by_bytes(self.values, is_vector=True),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)


def _bit_table() -> list[onnx.NodeProto]:
    """Nodes that give `bits_so_far` and `table` of `linear_by_bytes`, int32 [256, 8]: a link counts itself."""
    node = helper.make_node
    return [
        *all_bytes(),
        constant("bit_weights", [1, 2, 4, 8, 16, 32, 64, 128], np.int32),
        constant("two", 2, np.int32),
        node("Div", ["all_bytes", "bit_weights"], ["shifted"]),
        node("Mod", ["shifted", "two"], ["bits"]),
        node("CumSum", ["bits", "one0"], ["bits_so_far"]),
        node("Cast", ["bits"], ["is_link"], to=TensorProto.BOOL),
        node("Where", ["is_link", "bits_so_far", "absent"], ["table"]),
    ]


def _places(mask_NK: NDArray[np.bool_]) -> Places:
    rows_Z, columns_Z = np.nonzero(mask_NK)
    return Places(rows_Z, columns_Z, mask_NK.shape)
