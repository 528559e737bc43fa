"""One packed layer on its own: is what was encoded what was there, and does the op compute the layer?

Legend: N out_features, K in_features, T rows of input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...artifacts import CheckError
from ..layouts import DOMAIN, DOMAIN_VERSION
from ..layouts.values import INT8_LARGEST
from .files import quoted
from .packed_weight import PackedWeight

ERROR_BOUNDS = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-2, "int8": 4e-2, "int4": 0.3}
"""Largest error of a layer's output that is allowed, over its largest magnitude, by the type of the values."""
_ROWS = 4
_IR_VERSION = 11


@dataclass(frozen=True)
class LayerError:
    """How far a packed layer is off: its weights and its outputs, each over the largest magnitude of the exact ones."""

    weight: float
    output: float


def layer_model(packed: PackedWeight, tensors: dict[str, NDArray], out_features: int, opset: int) -> onnx.ModelProto:
    """A model of the packed op alone: input X [T, K], output Y [T, N], float32."""
    node = helper.make_node(
        packed.op_type, ["X", *tensors, *packed.no_bias], ["Y"], domain=DOMAIN, in_features=packed.in_features
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    return _model(node, initializers, packed.in_features, out_features, opset, [packed.function])


def dense_model(weight_NK: NDArray[np.float32], opset: int) -> onnx.ModelProto:
    """A model of the layer as a stock MatMul, with the same input and output."""
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    out_features, in_features = weight_NK.shape
    initializer = numpy_helper.from_array(np.ascontiguousarray(weight_NK.T), "W")
    return _model(node, [initializer], in_features, out_features, opset, [])


def check_layer(
    title: str,
    packed: PackedWeight,
    tensors: dict[str, NDArray],
    decoded_NK: NDArray,
    weight_NK: NDArray[np.float32],
    values: str,
    opset: int,
) -> LayerError:
    """Compare decoded weights, and outputs in ONNX Runtime for random inputs, with the weights W [N, K] in float64.

    Raises:
        CheckError: exact weights do not come back bit for bit, or an output is off by more than `ERROR_BOUNDS`.
    """
    if values in ("float32", "float16") and decoded_NK.tobytes() != weight_NK.tobytes():
        raise CheckError(f"layer {quoted(title)}: decoding does not give back its weights; nothing was published")
    weight_error = _relative(decoded_NK, weight_NK)
    if not np.isfinite(weight_NK).all():  # bit for bit is then all that can be said
        return LayerError(weight_error, 0.0)
    x_TK = np.random.default_rng(0).standard_normal((_ROWS, weight_NK.shape[1])).astype(np.float32)
    if scale := float(tensors.get("activation_scale", np.zeros(1))[0]):
        x_TK *= INT8_LARGEST * scale / np.abs(x_TK).max()  # the range that the layer is made for
    if values == "float16":
        x_TK = x_TK.astype(np.float16).astype(np.float32)  # what it gets, and rounds X to
    session = open_session(layer_model(packed, tensors, len(weight_NK), opset))
    (y_TN,) = session.run(None, {"X": x_TK})
    error = LayerError(weight_error, _relative(y_TN, x_TK.astype(np.float64) @ weight_NK.astype(np.float64).T))
    if not error.output <= ERROR_BOUNDS[values]:
        raise CheckError(
            f"layer {quoted(title)}: its packed form is off by {error.output:.1e} of its largest output, over "
            f"{ERROR_BOUNDS[values]:.0e}; nothing was published"
        )
    return error


def open_session(model: onnx.ModelProto, libraries: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    """A session of one thread over a model of our own making, with op libraries registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for library in libraries:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _relative(actual: NDArray, expected: NDArray) -> float:
    """Largest difference over the largest magnitude; equal infinities and NaNs differ by nothing."""
    if actual.size == 0:
        return 0.0
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(actual.astype(np.float64) - expected))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return float(difference.max() / (scale or 1.0))


def _model(
    node: onnx.NodeProto,
    initializers: list[TensorProto],
    in_features: int,
    out_features: int,
    opset: int,
    functions: list[onnx.FunctionProto],
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", in_features])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["T", out_features])
    graph = helper.make_graph([node], "layer", [x], [y], initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, functions=functions)
