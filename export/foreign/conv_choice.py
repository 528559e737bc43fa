"""Whether a convolution of one point is packed: by times measured here, against ONNX Runtime's Conv.

Legend: N out_features (filters), K in_features (channels), B batch, S places.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...kernels import library_path
from ..layouts import DOMAIN, DOMAIN_VERSION
from .autotune import interleaved_medians, timing
from .choosing import Times
from .layer_check import open_session
from .linears import Linear
from .packed_weight import PackedWeight
from .rewriting import stride_slice

_LINE, _SIDE, _VOLUME = 256, 32, 8
"""Places of an axis that a graph does not name, with one axis, with two, and with more."""
_GAIN = 1.05
"""A convolution must gain so much: Conv after Conv stays in ONNX Runtime's own order of channels, which one alone does
not show."""
_IR_VERSION = 11


def conv_times(
    layer: Linear, packed: PackedWeight, weight_NK: NDArray[np.float32], shape: tuple[int | None, ...], opset: int
) -> tuple[Times, str]:
    """Microseconds of the convolution and of its packed form, for one input, and the input's shape in words.

    Args:
        layer: a convolution of one point.
        packed: its weight in a layout.
        weight_NK: its weight.
        shape: of its input [B, K, ...], None for axes that are unknown.
        opset: of the file.
    """
    rank = len(layer.x_perm or ())
    missing = {3: _LINE, 4: _SIDE}.get(rank, _VOLUME)
    places = [missing if size is None or size < 1 else size for size in (*shape, *[None] * rank)[2:rank]]
    x = np.random.default_rng(0).standard_normal((1, weight_NK.shape[1], *places)).astype(np.float32)
    strides = layer.strides or (1,) * len(places)
    y_shape = (1, len(weight_NK), *(-(-size // step) for size, step in zip(places, strides, strict=True)))
    with timing():
        sessions = {
            "dense": open_session(_dense(layer, weight_NK, x.shape, y_shape, opset)),
            "packed": open_session(_packed(layer, packed, x.shape, y_shape, opset), [str(library_path())]),
        }
        medians = interleaved_medians(sessions, x, y_shape, np.zeros(0, np.int64))
    return Times(medians["dense"], medians["packed"], "us measured"), "x".join(map(str, x.shape))


def gains(times: Times) -> bool:
    """Whether the packed form is faster by enough."""
    return times.speedup > _GAIN


def _dense(
    layer: Linear, weight_NK: NDArray[np.float32], x_shape: tuple[int, ...], y_shape: tuple[int, ...], opset: int
) -> ModelProto:
    weight = weight_NK.reshape(*weight_NK.shape, *[1] * (len(x_shape) - 2))
    attributes = {"strides": list(layer.strides)} if layer.strides else {}
    node = helper.make_node("Conv", ["X", "W"], ["Y"], **attributes)  # type: ignore[arg-type]
    return _model([node], [numpy_helper.from_array(weight, "W")], x_shape, y_shape, opset, None)


def _packed(
    layer: Linear, packed: PackedWeight, x_shape: tuple[int, ...], y_shape: tuple[int, ...], opset: int
) -> ModelProto:
    tensors = dict(packed.encode())
    value, nodes = "X", []
    if layer.strides:
        slices = stride_slice(layer.strides)
        tensors |= slices
        nodes.append(helper.make_node("Slice", ["X", *slices], ["sliced"]))
        value = "sliced"
    weights = list(packed.encode())
    nodes += [
        helper.make_node("Transpose", [value], ["x"], perm=layer.x_perm),
        helper.make_node(packed.op_type, ["x", *weights, ""], ["y"], domain=DOMAIN, in_features=packed.in_features),
        helper.make_node("Transpose", ["y"], ["Y"], perm=layer.y_perm),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    return _model(nodes, initializers, x_shape, y_shape, opset, packed)


def _model(
    nodes: list[NodeProto],
    initializers: list[TensorProto],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    opset: int,
    packed: PackedWeight | None,
) -> ModelProto:
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y_shape)]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [] if packed is None else [packed.function]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, functions=functions)
