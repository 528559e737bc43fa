"""Pieces of ONNX function bodies that the layouts share.

Legend: N out_features, K in_features, T tokens, S stored values, G groups of columns that share a scale.

ONNX Runtime computes such a body once, when it loads a file, and keeps every intermediate tensor of every node until
all are computed. So bodies have few tensors of N x K elements, in types as small as can be. All constants have one
element: ONNX Runtime then sees where several nodes compute the same from one weight, and does it once.
"""

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from .layout import DOMAIN, OPSET
from .values import INT8_LARGEST, INT8_LEAST, ValueType

SMALLEST_MAGNITUDE = 1e-30
"""Tokens are scaled by at least this: a token of zeros has a finite inverse scale. The kernels do the same."""
_GROUP_STEP = 64


def constant(name: str, value: ArrayLike, dtype: type) -> onnx.NodeProto:
    """A Constant node whose output is `name`."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def small_constant(name: str, value: int) -> list[onnx.NodeProto]:
    """Nodes whose output `name` is a uint8 scalar, made from an int64 one.

    ONNX Runtime shares equal scalars of int64 between the copies of a body, but not those of uint8; only copies with
    shared constants are decoded once for all nodes that use one weight.
    """
    return [
        constant(f"{name}_int64", value, np.int64),
        helper.make_node("Cast", [f"{name}_int64"], [name], to=TensorProto.UINT8),
    ]


def in_features_constant() -> list[onnx.NodeProto]:
    """Nodes that give K, the function's attribute `in_features`, as int64 scalar `K0` and as int64 [1] `K`.

    Along come `zero0` and `one0`, the int64 scalars 0 and 1, and `first`, `second` and `last`: the int64 [1] constants
    0, 1 and -1.
    """
    node = helper.make_node("Constant", [], ["K0"])
    reference = onnx.AttributeProto(name="value_int", ref_attr_name="in_features", type=onnx.AttributeProto.INT)
    node.attribute.append(reference)
    return [
        node,
        constant("zero0", 0, np.int64),
        constant("one0", 1, np.int64),
        constant("first", [0], np.int64),
        constant("second", [1], np.int64),
        constant("last", [-1], np.int64),
        helper.make_node("Unsqueeze", ["K0", "first"], ["K"]),
    ]


def numbers(name: str, count: str) -> onnx.NodeProto:
    """A node that gives 0, 1, 2, … as int64 [count], from the int64 scalar `count`."""
    return helper.make_node("Range", ["zero0", count, "one0"], [name])


def float_values(values: ValueType) -> list[onnx.NodeProto]:
    """Nodes from `values` to `values_float`: float32, of the same shape.

    4-bit values give float32 [S] instead, and may bring one more zero at the end.
    """
    node = helper.make_node
    if values.name != "int4":
        return [node("Cast", ["values"], ["values_float"], to=TensorProto.FLOAT)]
    return [
        *small_constant("low_half", 15),
        *small_constant("half_bits", 4),
        *small_constant("sign_bit", 8),
        constant("sign_weight", 8, np.float32),
        node("Unsqueeze", ["values", "last"], ["bytes"]),
        node("BitwiseAnd", ["bytes", "low_half"], ["low"]),
        node("BitShift", ["bytes", "half_bits"], ["high"], direction="RIGHT"),
        node("Concat", ["low", "high"], ["halves"], axis=-1),
        node("BitwiseXor", ["halves", "sign_bit"], ["biased"]),
        node("Cast", ["biased"], ["biased_float"], to=TensorProto.FLOAT),
        node("Sub", ["biased_float", "sign_weight"], ["signed"]),
        node("Reshape", ["signed", "last"], ["values_float"]),
    ]


def linear_tail(values: ValueType) -> list[onnx.NodeProto]:
    """Nodes from float weights `weight_unscaled` [N, K], not yet scaled, to Y = X W^T + bias.

    Gemm takes an absent bias as it is, so one body serves both forms of the op.
    """
    node = helper.make_node
    return [
        *(_scaled_weight(values) if values.scaled else [node("Identity", ["weight_unscaled"], ["weight_NK"])]),
        node("Concat", ["last", "K"], ["matrix_shape"], axis=0),
        node("Reshape", ["X", "matrix_shape"], ["x_unrounded"]),
        *(_quantised_activations() if values.scaled else _cast_activations()),
        node("Gemm", ["x_TK", "weight_NK", "bias"], ["y_TN"], transB=1),
        node("Shape", ["X"], ["x_shape"]),
        node("Slice", ["x_shape", "first", "last"], ["leading_shape"]),
        node("Shape", ["weight_NK"], ["N"], start=0, end=1),
        node("Concat", ["leading_shape", "N"], ["y_shape"], axis=0),
        # X may have no tokens: a 0 in the shape is then a size, not a dimension to copy.
        node("Reshape", ["y_TN", "y_shape"], ["Y"], allowzero=1),
    ]


def make_function(op_type: str, tensor_names: tuple[str, ...], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    """A model-local function of domain `ai.hebbline` with inputs X, the tensors and bias, and output Y."""
    inputs = ["X", *tensor_names, "bias"]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, op_type, inputs, ["Y"], nodes, opsets, ["in_features"])


def _cast_activations() -> list[onnx.NodeProto]:
    """X through the type of the values: to bfloat16 and back, or not at all."""
    node = helper.make_node
    return [
        node("CastLike", ["x_unrounded", "values"], ["x_rounded"]),
        node("Cast", ["x_rounded"], ["x_TK"], to=TensorProto.FLOAT),
    ]


def _scaled_weight(values: ValueType) -> list[onnx.NodeProto]:
    """Each weight times the scale of its row or, with 4-bit values, of its row and group of columns."""
    node = helper.make_node
    if values.per_element == 1:
        return [
            node("Unsqueeze", ["scales", "second"], ["scales_N1"]),
            node("Mul", ["weight_unscaled", "scales_N1"], ["weight_NK"]),
        ]
    return [
        constant("group_step", [_GROUP_STEP], np.int64),
        node("Shape", ["scales"], ["G"], start=1, end=2),
        node("Mul", ["G", "group_step"], ["G_steps"]),
        node("Add", ["K", "G_steps"], ["K_beyond"]),
        node("Sub", ["K_beyond", "second"], ["K_rounding"]),
        node("Div", ["K_rounding", "G_steps"], ["steps"]),
        node("Mul", ["steps", "group_step"], ["group_width"]),
        numbers("scaled_columns", "K0"),
        node("Div", ["scaled_columns", "group_width"], ["group_of"]),
        node("Gather", ["scales", "group_of"], ["scales_NK"], axis=1),
        node("Mul", ["weight_unscaled", "scales_NK"], ["weight_NK"]),
    ]


def _quantised_activations() -> list[onnx.NodeProto]:
    """X rounded to int8 steps: of each token's largest magnitude / 127, or of `activation_scale` where it is not 0."""
    node = helper.make_node
    return [
        constant("no_scale", 0, np.float32),
        constant("smallest", SMALLEST_MAGNITUDE, np.float32),
        constant("most", INT8_LARGEST, np.float32),
        constant("least", INT8_LEAST, np.float32),
        constant("unit", 1, np.float32),
        node("Abs", ["x_unrounded"], ["magnitudes"]),
        node("ReduceMax", ["magnitudes", "second"], ["magnitude_T1"], keepdims=1),
        node("Max", ["magnitude_T1", "smallest"], ["largest_T1"]),
        node("Div", ["largest_T1", "most"], ["token_scale_T1"]),
        node("Div", ["most", "largest_T1"], ["token_inverse_T1"]),
        node("Max", ["activation_scale", "smallest"], ["fixed_divisor"]),
        node("Div", ["unit", "fixed_divisor"], ["fixed_inverse"]),
        node("Greater", ["activation_scale", "no_scale"], ["is_fixed"]),
        node("Where", ["is_fixed", "activation_scale", "token_scale_T1"], ["scale_T1"]),
        node("Where", ["is_fixed", "fixed_inverse", "token_inverse_T1"], ["inverse_T1"]),
        node("Mul", ["x_unrounded", "inverse_T1"], ["steps_TK"]),
        node("Round", ["steps_TK"], ["rounded_TK"]),
        node("Clip", ["rounded_TK", "least", "most"], ["quants_TK"]),
        node("Mul", ["quants_TK", "scale_T1"], ["x_TK"]),
    ]
