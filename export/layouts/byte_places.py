"""Layouts whose bytes describe 8 columns each: the body that decodes them.

Legend: N out_features, K in_features, P bytes a row, B = N P bytes, S stored values.

A table says for each of the 256 bytes, and each of its columns, which of the byte's own values is there, from 1, or
that there is none. That, and the number of values before the byte, is a place in `values` behind one zero: place 0.
Each round of folding (see `rounds`) ends with one tensor as large as a float32 weight, and makes one or two.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from .functions import constant, linear_tail
from .rounds import rounds
from .stored import behind_zeros, cut, flat_values, group_numbers, row_scaled
from .values import ValueType

ABSENT = -(2**31)
"""In a table: no value, however many values come before the byte."""
_COLUMNS = 8


def all_bytes() -> list[onnx.NodeProto]:
    """Nodes that give `all_bytes`, the numbers of all bytes, int32 [256, 1]; and the int32 scalar `absent`."""
    node = helper.make_node
    return [
        constant("no_byte", 0, np.int32),
        constant("byte_step", 1, np.int32),
        constant("byte_count", 256, np.int32),
        constant("absent", ABSENT, np.int32),
        node("Range", ["no_byte", "byte_count", "byte_step"], ["byte_numbers"]),
        node("Unsqueeze", ["byte_numbers", "second"], ["all_bytes"]),
    ]


def bytes_of(tensor: str) -> list[onnx.NodeProto]:
    """Nodes from a uint8 tensor [N, P] to its bytes as int32 numbers, `bytes_B`; and `P`, int64 [1]."""
    node = helper.make_node
    return [
        node("Shape", [tensor], ["P"], start=1, end=2),
        node("Reshape", [tensor, "last"], ["bytes_uint8"]),
        node("Cast", ["bytes_uint8"], ["bytes_B"], to=TensorProto.INT32),
    ]


def linear_by_bytes(values: ValueType, *, is_vector: bool) -> list[onnx.NodeProto]:
    """Nodes from `table`, int32 [256, 8], `bytes_B`, and `before_B1`, the values before each byte, int32 [B, 1], to Y.

    `is_vector`: whether `values` is one.
    """
    node = helper.make_node
    grouped = values.per_element > 1
    return [
        *rounds(5 if grouped else 4),
        *flat_values(values, is_vector=is_vector),
        node("Gather", ["table", "bytes_B"], ["places_in_byte"]),
        node("Add", ["places_in_byte", "before_B1"], ["places_or_absent"]),
        node("Expand", ["no_byte", "round2"], ["nowhere"]),
        node("Max", ["places_or_absent", "nowhere"], ["places_B8"]),
        *behind_zeros(values, "round3"),
        node("Gather", ["values_behind_zero", "places_B8"], ["stored_B8"]),
        *(_scaled_bytes() if grouped else _scaled_rows(values)),
        *linear_tail(values),
    ]


def _scaled_rows(values: ValueType) -> list[onnx.NodeProto]:
    """From stored values to float ones late, when they are in rows: until then they are smaller."""
    return [*_rows("stored_B8", "round4", "stored_NK"), *row_scaled(values, "stored_NK")]


def _scaled_bytes() -> list[onnx.NodeProto]:
    """A group of columns has whole bytes, so that each byte has one scale."""
    node = helper.make_node
    return [
        node("Cast", ["stored_B8"], ["stored_float"], to=TensorProto.FLOAT),
        constant("byte_columns", _COLUMNS, np.int64),
        *group_numbers("P", "byte_columns", "round4"),
        node("Gather", ["scales", "group_numbers"], ["scales_NP"], axis=1),
        constant("scale_shape", [-1, 1], np.int64),
        node("Reshape", ["scales_NP", "scale_shape"], ["scales_B1"]),
        node("Mul", ["stored_float", "scales_B1"], ["scaled_B8"]),
        *_rows("scaled_B8", "round5", "weight_NK"),
    ]


def _rows(data: str, round_name: str, name: str) -> list[onnx.NodeProto]:
    """Nodes from [B, 8] to [N, K], not before a round."""
    node = helper.make_node
    return [
        constant("padded_columns", [_COLUMNS], np.int64),
        node("Mul", ["P", "padded_columns"], ["padded_K"]),
        node("Concat", ["last", "padded_K"], ["padded_shape"], axis=0),
        node("Mul", ["padded_shape", round_name], ["padded_shape_in_time"]),
        node("Reshape", [data, "padded_shape_in_time"], ["padded"]),
        *cut("padded", name),
    ]
