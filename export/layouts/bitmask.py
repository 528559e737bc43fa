"""BitmaskLinear: one bit a possible link, and the active weights in row-major order.

Legend: N out_features, K in_features, Z links, P = ceil(K / 8). Canonical tensors: `values` [Z], row-major;
`mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k, padding bits 0; and the scales of the value type.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...artifacts.masks import pack_mask, unpack_mask
from .functions import constant, flat_values, in_features_constant, linear_tail, make_function
from .layout import check_mask_covers, layout_name
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType


class BitmaskLayout:
    """One bit a possible link: with float32 values the smallest layout from about 6% density up."""

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        self.values = values
        self.name = layout_name("bitmask", values)
        self.op_type = "BitmaskLinear" + values.op_suffix
        self.tensor_names = ("values", "mask", *(SCALE_NAMES if values.scaled else ()))

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero."""
        check_mask_covers(weight_NK, mask_NK)
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
        """Expand the bits; a running count of them is each link's place in `values`."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            *flat_values(self.values),
            constant("bit_places", np.arange(8), np.uint8),
            constant("one", [1], np.uint8),
            constant("rows_shape", [0, -1], np.int64),
            constant("zero", [0], np.float32),
            constant("axis", 0, np.int64),
            node("Unsqueeze", ["mask", "last"], ["bytes_NP1"]),
            node("BitShift", ["bytes_NP1", "bit_places"], ["shifted_NP8"], direction="RIGHT"),
            node("BitwiseAnd", ["shifted_NP8", "one"], ["bits_NP8"]),
            node("Reshape", ["bits_NP8", "rows_shape"], ["bits_padded"]),
            node("Slice", ["bits_padded", "first", "K", "second"], ["bits_NK"]),
            node("Reshape", ["bits_NK", "last"], ["bits_flat"]),
            node("Cast", ["bits_flat"], ["counts"], to=TensorProto.INT64),
            node("CumSum", ["counts", "axis"], ["places_after"]),
            node("Sub", ["places_after", "counts"], ["places"]),
            # A row of trailing absent links points one past the values: one zero is appended for it.
            node("Concat", ["values_flat", "zero"], ["values_padded"], axis=0),
            node("Gather", ["values_padded", "places"], ["candidates"]),
            node("Cast", ["bits_flat"], ["active"], to=TensorProto.BOOL),
            node("Where", ["active", "candidates", "zero"], ["weight_flat"]),
            *linear_tail(self.values),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)


def _places(mask_NK: NDArray[np.bool_]) -> Places:
    rows_Z, columns_Z = np.nonzero(mask_NK)
    return Places(rows_Z, columns_Z, mask_NK.shape)
