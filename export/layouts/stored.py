"""Nodes from what a layout stores of its values to float weights.

Legend: N out_features, K in_features, S stored values, G groups of columns that share a scale.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from .functions import constant, numbers
from .values import ValueType

_GROUP_STEP = 64


def stored_values(values: ValueType) -> list[onnx.NodeProto]:
    """Nodes from `values` to `stored`, of the same shape and type; 4-bit ones become int8 in the second round, with
    one more dimension, of 2."""
    node = helper.make_node
    if values.per_element == 1:
        return [node("Identity", ["values"], ["stored"])]
    return [
        *_halves_of_bytes(),
        node("Cast", ["values"], ["value_bytes"], to=TensorProto.INT32),
        node("Gather", ["halves_of_bytes", "value_bytes"], ["stored"]),
    ]


def flat_values(values: ValueType, *, is_vector: bool = True) -> list[onnx.NodeProto]:
    """Nodes from `values`, a vector or not, to `values_flat`, which is one; 4-bit values may bring one more zero at the
    end."""
    kind = "Identity" if is_vector and values.per_element == 1 else "Reshape"
    inputs = ["stored", "last"] if kind == "Reshape" else ["stored"]
    return [*stored_values(values), helper.make_node(kind, inputs, ["values_flat"])]


def _halves_of_bytes() -> list[onnx.NodeProto]:
    """Nodes that give `halves_of_bytes`, int8 [256, 2]: the integers in [-8, 7] of each byte, low half first."""
    node = helper.make_node
    return [
        constant("half_weights", [1, 16], np.int64),
        constant("half_count", 16, np.int64),
        constant("sign_weight", 8, np.int64),
        constant("value_byte_count", 256, np.int64),
        numbers("value_byte_numbers", "value_byte_count"),
        node("Unsqueeze", ["value_byte_numbers", "second"], ["value_bytes_1"]),
        node("Div", ["value_bytes_1", "half_weights"], ["shifted_halves"]),
        node("Mul", ["sign_weight", "round2"], ["sign_in_time"]),
        node("Add", ["shifted_halves", "sign_in_time"], ["raised_halves"]),
        node("Mod", ["raised_halves", "half_count"], ["biased_halves"]),
        node("Sub", ["biased_halves", "sign_weight"], ["signed_halves"]),
        node("Cast", ["signed_halves"], ["halves_of_bytes"], to=TensorProto.INT8),
    ]


def behind_zeros(values: ValueType, round_name: str) -> list[onnx.NodeProto]:
    """Nodes that give `values_behind_zero`: `values_flat` with one zero before and one behind; not before a
    round."""
    node = helper.make_node
    return [
        constant("zero", 0, np.int32),
        node("Expand", ["zero", round_name], ["zero_1"]),
        as_stored(values, "zero_1", "stored_zero"),
        node("Concat", ["stored_zero", "values_flat", "stored_zero"], ["values_behind_zero"], axis=0),
    ]


def as_stored(values: ValueType, data: str, name: str) -> onnx.NodeProto:
    """A node from integers to the type of `stored`."""
    if values.per_element > 1:
        return helper.make_node("Cast", [data], [name], to=TensorProto.INT8)
    return helper.make_node("CastLike", [data, "values"], [name])


def cut(data: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that take the first K of `padded_K` columns of a matrix.

    Where these are all, the end is the largest number: ONNX Runtime drops such a Slice, and a copy of the matrix.
    """
    node = helper.make_node
    return [
        constant("no_end", [np.iinfo(np.int64).max], np.int64),
        node("Equal", ["K", "padded_K"], ["is_whole"]),
        node("Where", ["is_whole", "no_end", "K"], ["end"]),
        node("Slice", [data, "first", "end", "second"], [name]),
    ]


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


def group_scaled(data: str, round_name: str) -> list[onnx.NodeProto]:
    """Nodes from 4-bit values [N, K] to `weight_NK`, float32: times the scale of row and group of columns."""
    node = helper.make_node
    return [
        node("Cast", [data], ["weight_unscaled"], to=TensorProto.FLOAT),
        *group_numbers("K", "one0", round_name),
        node("Gather", ["scales", "group_numbers"], ["scales_NK"], axis=1),
        node("Mul", ["weight_unscaled", "scales_NK"], ["weight_NK"]),
    ]


def group_numbers(count: str, width: str, round_name: str) -> list[onnx.NodeProto]:
    """Nodes that give `group_numbers`: for each of `count` (int64 [1]) pieces of a row, of `width` columns (int64
    scalar) each, the group of 4-bit values that it is in; not before a round."""
    node = helper.make_node
    return [
        *group_width(),
        node("Squeeze", [count], ["piece_count"]),
        numbers("piece_numbers", "piece_count"),
        node("Mul", ["piece_numbers", width], ["piece_columns"]),
        node("Div", ["piece_columns", "group_width"], ["groups_of_pieces"]),
        node("Mul", ["groups_of_pieces", round_name], ["group_numbers"]),
    ]


def group_width() -> list[onnx.NodeProto]:
    """Nodes that give `G` and `group_width`, the groups of a row of 4-bit values and their columns, int64 [1]."""
    node = helper.make_node
    return [
        constant("group_step", _GROUP_STEP, np.int64),
        node("Shape", ["scales"], ["G"], start=1, end=2),
        node("Mul", ["G", "group_step"], ["G_steps"]),
        node("Add", ["K", "G_steps"], ["K_beyond"]),
        node("Sub", ["K_beyond", "one0"], ["K_rounding"]),
        node("Div", ["K_rounding", "G_steps"], ["steps"]),
        node("Mul", ["steps", "group_step"], ["group_width"]),
    ]
