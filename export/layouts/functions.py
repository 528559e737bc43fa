"""Pieces of ONNX function bodies that the layouts share."""

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from .layout import DOMAIN, OPSET


def constant(name: str, value: ArrayLike, dtype: type) -> onnx.NodeProto:
    """A Constant node whose output is `name`."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def in_features_constant() -> list[onnx.NodeProto]:
    """Nodes that give K, the function's attribute `in_features`, as int64 scalar `K0` and as int64 [1] `K`."""
    node = helper.make_node("Constant", [], ["K0"])
    reference = onnx.AttributeProto(name="value_int", ref_attr_name="in_features", type=onnx.AttributeProto.INT)
    node.attribute.append(reference)
    return [node, constant("first", [0], np.int64), helper.make_node("Unsqueeze", ["K0", "first"], ["K"])]


def linear_tail() -> list[onnx.NodeProto]:
    """Nodes from flat float weights `weight_flat` [N * K] to Y = X W^T + bias.

    Gemm takes an absent bias as it is, so one body serves both forms of the op.
    """
    node = helper.make_node
    return [
        constant("rest", [-1], np.int64),
        node("Concat", ["rest", "K"], ["matrix_shape"], axis=0),
        node("Reshape", ["weight_flat", "matrix_shape"], ["weight_NK"]),
        node("Reshape", ["X", "matrix_shape"], ["x_TK"]),
        node("Gemm", ["x_TK", "weight_NK", "bias"], ["y_TN"], transB=1),
        node("Shape", ["X"], ["x_shape"]),
        node("Slice", ["x_shape", "first", "rest"], ["leading_shape"]),
        node("Shape", ["weight_NK"], ["N"], start=0, end=1),
        node("Concat", ["leading_shape", "N"], ["y_shape"], axis=0),
        node("Reshape", ["y_TN", "y_shape"], ["Y"]),
    ]


def make_function(op_type: str, inputs: tuple[str, ...], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    """A model-local function of domain `ai.hebbline` with output Y and attribute `in_features`."""
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, op_type, list(inputs), ["Y"], nodes, opsets, ["in_features"])
