"""Nodes from what a layout stores of its values to float weights.

Legend: N out_features, K in_features, S stored values, G groups of columns that share a scale.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from .functions import constant, small_constant
from .rounds import rounds
from .values import ValueType

_GROUP_STEP = 64


def stored_values(values: ValueType) -> list[onnx.NodeProto]:
    """Nodes from `values` to `stored_S`, a vector of the same type; 4-bit ones are int8, 16 times themselves, and may
    bring one more zero at the end."""
    if values.per_element == 1:
        return [helper.make_node("Reshape", ["values", "last"], ["stored_S"])]
    return [*halves("values"), helper.make_node("Reshape", ["halves", "last"], ["stored_S"])]


def halves(name: str) -> list[onnx.NodeProto]:
    """Nodes from bytes of two 4-bit values to `halves`, int8 [bytes, 2], low half first: 16 times each value. The
    scales that go with them are `scales_of_halves`.

    A half that is moved to the top of its byte is the top of an int8: that needs no arithmetic but shifts.
    """
    node = helper.make_node
    return [
        *small_constant("to_bottom", [[0], [4]]),
        *small_constant("to_top", [4]),
        node("Flatten", [name], ["value_bytes"], axis=0),
        node("BitShift", ["value_bytes", "to_bottom"], ["halves_below"], direction="RIGHT"),
        node("BitShift", ["halves_below", "to_top"], ["halves_above"], direction="LEFT"),
        node("Transpose", ["halves_above"], ["halves_uint8"], perm=[1, 0]),
        node("Cast", ["halves_uint8"], ["halves"], to=TensorProto.INT8),
        constant("sixteen", 16, np.float32),
        node("Div", ["scales", "sixteen"], ["scales_of_halves"]),
    ]


def as_stored(values: ValueType, data: str, name: str) -> onnx.NodeProto:
    """A node from numbers to the type of `stored_S`."""
    if values.per_element > 1:
        return helper.make_node("Cast", [data], [name], to=TensorProto.INT8)
    return helper.make_node("CastLike", [data, "values"], [name])


def row_scaled(values: ValueType, data: str) -> list[onnx.NodeProto]:
    """Nodes from stored values [N, K] to `weight_NK`, float32: times the scale of the row where the type has scales."""
    node = helper.make_node
    if not values.scaled:
        return [node("Cast", [data], ["weight_NK"], to=TensorProto.FLOAT)]
    return [
        node("Cast", [data], ["weight_unscaled"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["scales", "second"], ["scales_N1"]),
        node("Mul", ["weight_unscaled", "scales_N1"], ["weight_NK"]),
    ]


def group_scaled(data: str) -> list[onnx.NodeProto]:
    """Nodes from `halves` that are a matrix [N, K] to `weight_NK`, float32: times the scale of row and group."""
    node = helper.make_node
    return [
        *rounds(2),
        node("Cast", [data], ["weight_unscaled"], to=TensorProto.FLOAT),
        *group_numbers("K", "second", "round2"),
        node("Gather", ["scales_of_halves", "group_numbers"], ["scales_NK"], axis=1),
        node("Mul", ["weight_unscaled", "scales_NK"], ["weight_NK"]),
    ]


def byte_scaled(data: str, rows_of_bytes: str, round_name: str) -> list[onnx.NodeProto]:
    """Nodes from `halves` in bytes of columns, [B, 8], to `scaled_B8`, float32: times the scale of row and group.

    That is one for a byte, since groups have whole bytes. `rows_of_bytes` is a tensor [N, bytes of a row]; not before a
    round.
    """
    node = helper.make_node
    return [
        constant("byte_columns", [8], np.int64),
        node("Shape", [rows_of_bytes], ["P"], start=1),
        *group_numbers("P", "byte_columns", round_name),
        node("Gather", ["scales_of_halves", "group_numbers"], ["scales_NP"], axis=1),
        node("Concat", ["last", "second"], ["scale_shape"], axis=0),
        node("Reshape", ["scales_NP", "scale_shape"], ["scales_B1"]),
        node("Cast", [data], ["unscaled_B8"], to=TensorProto.FLOAT),
        node("Mul", ["unscaled_B8", "scales_B1"], ["scaled_B8"]),
    ]


def cut(data: str, name: str, rows_of_bytes: str) -> list[onnx.NodeProto]:
    """Nodes that take the first K columns of a matrix of whole bytes of columns, of which `rows_of_bytes` has the rows.

    Where these are all, the end is the largest number: ONNX Runtime drops such a Slice, and a copy of the matrix.
    """
    node = helper.make_node
    return [
        constant("no_end", [np.iinfo(np.int64).max], np.int64),
        constant("columns_of_byte", [8], np.int64),
        node("Shape", [rows_of_bytes], ["bytes_of_row"], start=1),
        node("Mul", ["bytes_of_row", "columns_of_byte"], ["whole_K"]),
        node("Equal", ["K", "whole_K"], ["is_whole"]),
        node("Where", ["is_whole", "no_end", "K"], ["end"]),
        node("Slice", [data, "first", "end", "second"], [name]),
    ]


def group_numbers(count: str, width: str, round_name: str) -> list[onnx.NodeProto]:
    """Nodes that give `group_numbers`: for each of `count` pieces of a row, of `width` columns each (both int64 [1]),
    the group of 4-bit values that it is in; not before a round."""
    node = helper.make_node
    return [
        *group_width(),
        node("Expand", [width, count], ["piece_widths"]),
        node("CumSum", ["piece_widths", "zero0"], ["piece_columns"], exclusive=1),
        node("Div", ["piece_columns", "group_width"], ["groups_of_pieces"]),
        node("Mul", ["groups_of_pieces", round_name], ["group_numbers"]),
    ]


def group_width() -> list[onnx.NodeProto]:
    """Nodes that give `G` and `group_width`, the groups of a row of 4-bit values and their columns, int64 [1]."""
    node = helper.make_node
    return [
        constant("group_step", [_GROUP_STEP], np.int64),
        node("Shape", ["scales"], ["G"], start=1, end=2),
        node("Mul", ["G", "group_step"], ["G_steps"]),
        node("Add", ["K", "G_steps"], ["K_beyond"]),
        node("Sub", ["K_beyond", "second"], ["K_rounding"]),
        node("Div", ["K_rounding", "G_steps"], ["steps"]),
        node("Mul", ["steps", "group_step"], ["group_width"]),
    ]
