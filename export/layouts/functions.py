"""Pieces of ONNX function bodies that the layouts share.

Legend: N out_features, K in_features, T tokens, S stored values, G groups of columns that share a scale.

ONNX Runtime computes such a body once, when it loads a file, and keeps every intermediate tensor of every node until
all are computed. So bodies have few tensors of N x K elements, in types as small as can be. Constants have at most
eight elements, of int32, int64 or float32: ONNX Runtime then sees where several nodes compute the same from one weight,
and does it once. Bodies also have few nodes: with hundreds of layers, handling nodes takes ONNX Runtime as long as
computing them, and each node costs more the more there are.
"""

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from .layout import DOMAIN, OPSET
from .values import INT8_LARGEST, INT8_LEAST, ValueType

SMALLEST_MAGNITUDE = 1e-30
"""Tokens are scaled by at least this: a token of zeros has a finite inverse scale. The kernels do the same."""


def constant(name: str, value: ArrayLike, dtype: type) -> onnx.NodeProto:
    """A Constant node whose output is `name`."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def in_features_constant() -> list[onnx.NodeProto]:
    """Nodes that give K, the function's attribute `in_features`, as int64 scalar `K0` and as int64 [1] `K`.

    Along come `zero0`, the int64 scalar 0, and `first`, `second` and `last`: the int64 [1] constants 0, 1 and -1.
    """
    node = helper.make_node("Constant", [], ["K0"])
    reference = onnx.AttributeProto(name="value_int", ref_attr_name="in_features", type=onnx.AttributeProto.INT)
    node.attribute.append(reference)
    return [
        node,
        constant("zero0", 0, np.int64),
        constant("first", [0], np.int64),
        constant("second", [1], np.int64),
        constant("last", [-1], np.int64),
        helper.make_node("Unsqueeze", ["K0", "first"], ["K"]),
    ]


def filled(shape: str, name: str, value: float, dtype: type) -> onnx.NodeProto:
    """A node that gives a tensor of one value everywhere, of the shape that the int64 tensor `shape` says."""
    return helper.make_node("ConstantOfShape", [shape], [name], value=numpy_helper.from_array(np.array([value], dtype)))


def small_constant(name: str, value: ArrayLike) -> list[onnx.NodeProto]:
    """Nodes that give a constant of uint8, which ONNX Runtime recognises in several nodes only as int64."""
    wide = f"{name}_int64"
    return [constant(wide, value, np.int64), helper.make_node("Cast", [wide], [name], to=TensorProto.UINT8)]


def linear_tail(values: ValueType, rows: str, columns: str = "") -> list[onnx.NodeProto]:
    """Nodes from float weights `weight_NK` to Y = X W^T + bias.

    Gemm takes an absent bias as it is, so one body serves both forms of the op. `rows` names N, int64 [1]. `columns` is
    for weights with more columns than K: it names their number, int64 [1], and X gets columns of zeros.
    """
    node = helper.make_node
    return [
        node("Concat", ["last", "K"], ["matrix_shape"], axis=0),
        node("Reshape", ["X", "matrix_shape"], ["x_narrow" if columns else "x_unrounded"]),
        *(_widened(columns) if columns else []),
        *(_quantised_activations() if values.scaled else _cast_activations()),
        node("Gemm", ["x_TK", "weight_NK", "bias"], ["y_TN"], transB=1),
        node("Shape", ["X"], ["leading_shape"], end=-1),
        node("Concat", ["leading_shape", rows], ["y_shape"], axis=0),
        # X may have no tokens: a 0 in the shape is then a size, not a dimension to copy.
        node("Reshape", ["y_TN", "y_shape"], ["Y"], allowzero=1),
    ]


def make_function(op_type: str, tensor_names: tuple[str, ...], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    """A model-local function of domain `ai.hebbline` with inputs X, the tensors and bias, and output Y."""
    inputs = ["X", *tensor_names, "bias"]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, op_type, inputs, ["Y"], nodes, opsets, ["in_features"])


def _widened(columns: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Sub", [columns, "K"], ["columns_beyond"]),
        node("Concat", ["first", "first", "first", "columns_beyond"], ["x_pads"], axis=0),
        node("Pad", ["x_narrow", "x_pads"], ["x_unrounded"]),
    ]


def _cast_activations() -> list[onnx.NodeProto]:
    """X through the type of the values: to bfloat16 and back, or not at all."""
    node = helper.make_node
    return [
        node("CastLike", ["x_unrounded", "values"], ["x_rounded"]),
        node("Cast", ["x_rounded"], ["x_TK"], to=TensorProto.FLOAT),
    ]


def _quantised_activations() -> list[onnx.NodeProto]:
    """X rounded to int8 steps: of each token's largest magnitude / 127, or of `activation_scale` where it is not 0."""
    node = helper.make_node
    return [
        constant("smallest", SMALLEST_MAGNITUDE, np.float32),
        constant("most", INT8_LARGEST, np.float32),
        constant("least", INT8_LEAST, np.float32),
        node("Abs", ["x_unrounded"], ["magnitudes"]),
        node("ReduceMax", ["magnitudes", "second"], ["magnitude_T1"], keepdims=1),
        node("Max", ["magnitude_T1", "smallest"], ["largest_T1"]),
        node("Div", ["largest_T1", "most"], ["token_scale_T1"]),
        node("Div", ["most", "largest_T1"], ["token_inverse_T1"]),
        node("Max", ["activation_scale", "smallest"], ["fixed_divisor"]),
        node("Reciprocal", ["fixed_divisor"], ["fixed_inverse"]),
        node("Cast", ["activation_scale"], ["is_fixed"], to=TensorProto.BOOL),
        node("Where", ["is_fixed", "activation_scale", "token_scale_T1"], ["scale_T1"]),
        node("Where", ["is_fixed", "fixed_inverse", "token_inverse_T1"], ["inverse_T1"]),
        node("Mul", ["x_unrounded", "inverse_T1"], ["steps_TK"]),
        node("Round", ["steps_TK"], ["rounded_TK"]),
        node("Clip", ["rounded_TK", "least", "most"], ["quants_TK"]),
        node("Mul", ["quants_TK", "scale_T1"], ["x_TK"]),
    ]
