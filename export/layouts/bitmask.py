"""BitmaskLinear: one bit a possible link, and the active weights in row-major order.

Legend: N out_features, K in_features, Z links, P = ceil(K / 8). Canonical tensors: `values` float [Z], row-major;
`mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k, padding bits 0.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...artifacts.masks import pack_mask, unpack_mask
from .functions import constant, in_features_constant, linear_tail, make_function
from .layout import Tensors, check_mask_covers


class BitmaskLayout:
    """One bit a possible link: the smallest layout from about 3% density up."""

    name = "bitmask"
    op_type = "BitmaskLinear"
    tensor_names = ("values", "mask")

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero."""
        check_mask_covers(weight_NK, mask_NK)
        return {"values": weight_NK[mask_NK], "mask": pack_mask(mask_NK)}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where mask and values do not fit together."""
        mask_NK = unpack_mask(tensors["mask"], in_features)
        values_Z = tensors["values"]
        if values_Z.shape != (np.count_nonzero(mask_NK),):
            raise ValueError(f"{values_Z.shape} values for {np.count_nonzero(mask_NK)} links")
        weight_NK = np.zeros(mask_NK.shape, values_Z.dtype)
        weight_NK[mask_NK] = values_Z
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int, value_bytes: int) -> int:
        """P bytes a row, and the values."""
        return out_features * -(-in_features // 8) + links * value_bytes

    def function(self) -> onnx.FunctionProto:
        """Expand the bits; a running count of them is each link's place in `values`."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            constant("columns", [1], np.int64),
            constant("last", [-1], np.int64),
            constant("bit_places", np.arange(8), np.uint8),
            constant("one", [1], np.uint8),
            constant("rows_shape", [0, -1], np.int64),
            constant("zero", [0], np.float32),
            constant("axis", 0, np.int64),
            node("Unsqueeze", ["mask", "last"], ["bytes_NP1"]),
            node("BitShift", ["bytes_NP1", "bit_places"], ["shifted_NP8"], direction="RIGHT"),
            node("BitwiseAnd", ["shifted_NP8", "one"], ["bits_NP8"]),
            node("Reshape", ["bits_NP8", "rows_shape"], ["bits_padded"]),
            node("Slice", ["bits_padded", "first", "K", "columns"], ["bits_NK"]),
            node("Reshape", ["bits_NK", "last"], ["bits_flat"]),
            node("Cast", ["bits_flat"], ["counts"], to=TensorProto.INT64),
            node("CumSum", ["counts", "axis"], ["places_after"]),
            node("Sub", ["places_after", "counts"], ["places"]),
            # A row of trailing absent links points one past the values: one zero is appended for it.
            node("CastLike", ["zero", "values"], ["zero_value"]),
            node("Concat", ["values", "zero_value"], ["values_padded"], axis=0),
            node("Gather", ["values_padded", "places"], ["candidates"]),
            node("Cast", ["bits_flat"], ["active"], to=TensorProto.BOOL),
            node("Where", ["active", "candidates", "zero_value"], ["weight_flat"]),
            *linear_tail(),
        ]
        return make_function(self.op_type, ("X", *self.tensor_names, "bias"), nodes)
