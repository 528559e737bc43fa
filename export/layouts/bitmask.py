"""BitmaskLinear: one bit a possible link, and the active weights in row-major order.

Legend: N out_features, K in_features, Z links, P = ceil(K / 8). Canonical tensors: `values` [Z], row-major;
`mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k, padding bits 0; and the scales of the value type.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...artifacts.masks import pack_mask, unpack_mask
from .functions import constant, filled, in_features_constant, linear_tail, make_function
from .layout import check_countable, check_mask_covers, layout_name
from .rounds import rounds
from .stored import as_stored, byte_scaled, cut, row_scaled, stored_values
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType


class BitmaskLayout:
    """One bit a possible link: with float32 values the smallest layout from about 6% density up."""

    needs_blocks = 0

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        self.values = values
        self.name = layout_name("bitmask", values)
        self.op_type = "BitmaskLinear" + values.op_suffix
        self.tensor_names = ("values", "mask", *(SCALE_NAMES if values.scaled else ()))

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero or int32 cannot count the links."""
        check_mask_covers(weight_NK, mask_NK)
        check_countable(int(np.count_nonzero(mask_NK)))
        packed = self.values.encode(weight_NK[mask_NK], mask_places(mask_NK))
        tensors = packed | {"mask": pack_mask(mask_NK)}
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where mask and values do not fit together."""
        mask_NK = unpack_mask(tensors["mask"], in_features)
        weight_NK = np.zeros(mask_NK.shape, np.float32)
        weight_NK[mask_NK] = self.values.decode(tensors, mask_places(mask_NK))
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """P bytes a row, and the values."""
        mask_bytes = out_features * -(-in_features // 8)
        return mask_bytes + self.values.packed_bytes(links, (out_features, in_features), links)

    def function(self) -> onnx.FunctionProto:
        """Where in `values` the eight columns of each byte of the mask are, and the product with what is there."""
        last = 4 if self.values.per_element > 1 else 3
        nodes = [
            *in_features_constant(),
            *rounds(last),
            *links_before_bytes(),
            *stored_values(self.values),
            helper.make_node("Shape", ["stored_S"], ["S"]),
            *linear_by_bytes(self.values, ("round2", "round3", "round4")),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)


def links_before_bytes() -> list[onnx.NodeProto]:
    """Nodes from `mask` to `bytes_B`, its bytes, `before_B1`, the links before each, both int32, and `N`, int64 [1];
    along come the tables of `_byte_tables`."""
    node = helper.make_node
    return [
        node("Shape", ["mask"], ["N"], end=1),
        *_byte_tables(),
        node("Reshape", ["mask", "last"], ["mask_bytes"]),
        node("Cast", ["mask_bytes"], ["bytes_B"], to=TensorProto.INT32),
        node("Gather", ["bit_counts", "bytes_B"], ["counts_B1"]),
        node("CumSum", ["counts_B1", "zero0"], ["before_B1"], exclusive=1),
    ]


def linear_by_bytes(values: ValueType, stages: tuple[str, str, str], waits: str = "") -> list[onnx.NodeProto]:
    """Nodes from `stored_S`, the values of the links, `S`, their number, and what `links_before_bytes` gives, to Y.

    A table says for each byte where its eight columns are, but for the values before it. Values stand behind as many
    zeros as there are values, and one: a place without a link is among those.

    Args:
        values: their type.
        stages: the rounds of folding (see `rounds`) in which values are taken; are put in rows or, of 4-bit values,
            scaled; and these are put in rows.
        waits: the round before which places are not computed, where values take rounds of their own to decode.
    """
    node = helper.make_node
    taken, *then = stages
    return [
        node("Cast", ["S"], ["S_int32"], to=TensorProto.INT32),
        node("Add", ["bits_so_far", "S_int32"], ["places_behind_zeros"]),
        node("Mul", ["places_behind_zeros", "bits"], ["places_at_once" if waits else "places_or_0"]),
        *(_waiting("places_at_once", "places_or_0", waits) if waits else []),
        node("Gather", ["places_or_0", "bytes_B"], ["places_in_byte"]),
        node("Add", ["places_in_byte", "before_B1"], ["places_B8"]),
        node("Add", ["S", taken], ["zero_count"]),
        filled("zero_count", "zeros_float", 0, np.float32),
        as_stored(values, "zeros_float", "zeros_stored"),
        node("Concat", ["zeros_stored", "stored_S"], ["values_behind_zeros"], axis=0),
        node("Gather", ["values_behind_zeros", "places_B8"], ["stored_B8"]),
        *_weight(values, *then),
        *linear_tail(values, "N"),
    ]


def _waiting(data: str, name: str, round_name: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Cast", [round_name], [f"{name}_waits"], to=TensorProto.INT32),
        node("Mul", [data, f"{name}_waits"], [name]),
    ]


def _weight(values: ValueType, then: str, last: str) -> list[onnx.NodeProto]:
    """Nodes from `stored_B8`, a value for each bit, to `weight_NK`. Values become float32 when they are in rows: until
    then they are smaller. A group of columns of 4-bit values has whole bytes: those are scaled before."""
    node = helper.make_node
    grouped = values.per_element > 1
    return [
        *(byte_scaled("stored_B8", "mask", then) if grouped else []),
        node("Concat", ["N", "last"], ["padded_shape"], axis=0),
        node("Mul", ["padded_shape", last if grouped else then], ["padded_shape_in_time"]),
        node("Reshape", ["scaled_B8" if grouped else "stored_B8", "padded_shape_in_time"], ["padded"]),
        *cut("padded", "weight_NK" if grouped else "stored_NK", "mask"),
        *([] if grouped else row_scaled(values, "stored_NK")),
    ]


def _byte_tables() -> list[onnx.NodeProto]:
    """Nodes that give for all bytes, int32: `bits` [256, 8], 0 or 1; `bits_so_far` [256, 8], where a bit counts itself;
    and `bit_counts` [256, 1]."""
    node = helper.make_node
    return [
        constant("byte_count", [256], np.int64),
        constant("bit_weights", [1, 2, 4, 8, 16, 32, 64, 128], np.int32),
        constant("two", 2, np.int32),
        filled("byte_count", "each_byte", 1, np.int32),
        node("CumSum", ["each_byte", "zero0"], ["byte_numbers"], exclusive=1),
        node("Unsqueeze", ["byte_numbers", "second"], ["all_bytes"]),
        node("Div", ["all_bytes", "bit_weights"], ["shifted"]),
        node("Mod", ["shifted", "two"], ["bits"]),
        node("Squeeze", ["second"], ["one0"]),
        node("CumSum", ["bits", "one0"], ["bits_so_far"]),
        node("Slice", ["bits_so_far", "last", "byte_count", "second"], ["bit_counts"]),
    ]


def mask_places(mask_NK: NDArray[np.bool_]) -> Places:
    """Where the links of a mask are, row by row."""
    rows_Z, columns_Z = np.nonzero(mask_NK)
    return Places(rows_Z, columns_Z, mask_NK.shape)
