"""Layers that ONNX Runtime multiplies in integers: weight and input both come from DequantizeLinear.

Their integers, scales and zero points are kept. The packed op rounds X by one scale to int8, which gives back the
graph's own integers: of an input with another zero point the difference is constant, and goes into the bias.

Legend: N out_features, K in_features, S stored values.
"""

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..layouts import DOMAIN, DOMAIN_VERSION
from ..layouts.values import Int8Values, Places
from .bodies import Body, function_key
from .document import Document
from .linears import CENTRES, Linear, QuantisedInput
from .packed_weight import PackedWeight
from .weights import Constant, Derived, load, parts_of, trace_stored

_DEQUANTIZE = ("", "DequantizeLinear", "")
_LARGEST = 127
_LARGEST_BLOCK = 1 << 16
"""A block that claims to be larger is not given to the runtime in this process."""


class KeptInt8Values(Int8Values):
    """int8 values with the scales [N] that a file has, in place of scales made for the weights."""

    def __init__(self, scales_N: NDArray[np.float32]) -> None:
        self._scales_N = scales_N

    def encode(self, weight_S: NDArray[np.float32], places: Places) -> dict[str, NDArray]:
        """See `ValueType.encode`; the weights are integers times the scales."""
        quants_S = np.rint(weight_S / self._scales_N[places.rows_S]).astype(np.int8)
        return {"values": quants_S, "scales": self._scales_N, "activation_scale": np.zeros(1, np.float32)}


def quantised_input(layer: Linear, document: Document) -> QuantisedInput | None:
    """The integers of int8 or uint8 that a layer's input is made of, all with one scale; None where it is not."""
    body = layer.body
    node = _producer(body, layer.x)
    if node is None or function_key(node) != _DEQUANTIZE or len(node.input) < 2:
        return None
    scale = trace_stored(body, node.input[1])
    zero_name = node.input[2] if len(node.input) > 2 else ""
    zero = trace_stored(body, zero_name) if zero_name else None
    if scale is None or (zero_name and zero is None):
        return None
    if zero is None and not _is_uint8(_producer(body, node.input[0])):
        return None
    scales, zeros = scale.load(document), np.zeros(1, np.uint8) if zero is None else zero.load(document)
    kind = helper.np_dtype_to_tensor_dtype(zeros.dtype)
    if scales.size != 1 or zeros.size != 1 or scales.dtype != np.float32 or kind not in CENTRES:
        return None
    number = float(scales.reshape(()))
    if not np.isfinite(number) or number <= 0:
        return None
    return QuantisedInput(node.input[0], node.input[1], kind, number, int(zeros.reshape(())))


def _producer(body: Body, name: str) -> NodeProto | None:
    place = body.producers.get(name)
    return None if place is None else body.nodes[place]


def _is_uint8(node: NodeProto | None) -> bool:
    """Whether a node writes uint8: QuantizeLinear does where it has no zero point."""
    return node is not None and node.op_type == "QuantizeLinear" and len(node.input) == 2 and not node.attribute


def dequantisation(layer: Linear) -> Derived | None:
    """The DequantizeLinear in the chain of a layer's weight, None where there is none."""
    steps = [part for part in parts_of(layer.weight) if isinstance(part, Derived)]
    found = next((step for step in steps if function_key(step.node) == _DEQUANTIZE), None)
    sizes = [item.i for item in found.node.attribute if item.name == "block_size"] if found is not None else []
    return found if all(size <= _LARGEST_BLOCK for size in sizes) else None


def kept_values(layer: Linear, matrix_NK: NDArray[np.float32], document: Document) -> KeptInt8Values | str:
    """The weight's own integers and scales, as a value type of the layouts; or why they do not fit it, in words."""
    step = dequantisation(layer)
    scale = None if step is None or len(step.inputs) < 2 else step.inputs[1]
    if scale is None:
        return "its weight is stored in floats"
    scales = trace_stored(scale.owner, scale.name)
    if scales is None:
        return "its scales are computed"
    values = scales.load(document).reshape(-1).astype(np.float32)
    if len(values) not in (1, len(matrix_NK)) or (values <= 0).any() or not np.isfinite(values).all():
        return "its scales are not one a row of the weight"
    scales_N = np.ascontiguousarray(np.broadcast_to(values, len(matrix_NK)))
    quants_NK = np.rint(matrix_NK / scales_N[:, None])
    # Scales of columns that happen to be as many as rows fail here, as blocks of scales do.
    if (np.abs(quants_NK) > _LARGEST).any() or ((quants_NK * scales_N[:, None]).astype(np.float32) != matrix_NK).any():
        return "its weights are not integers from -127 to 127 times one scale a row"
    return KeptInt8Values(scales_N)


def centred(layer: Linear, given: QuantisedInput, matrix_NK: NDArray[np.float32]) -> Linear:
    """The layer whose bias makes up for an input that is read with the zero point `given.centre`."""
    if given.zero == given.centre:
        return layer
    shift = (given.centre - given.zero) * given.scale
    bias_N = np.zeros(len(matrix_NK)) if layer.bias_N is None else layer.bias_N.astype(np.float64)
    correction_N = shift * matrix_NK.astype(np.float64).sum(axis=1)
    return replace(layer, bias=None, bias_N=(bias_N + correction_N).astype(np.float32), integers=given)


def dense_model(layer: Linear, given: QuantisedInput | None, document: Document, columns: int, rows: int) -> ModelProto:
    """The layer as it stands in the file, alone: from X [T, K], quantised where it is, to Y [T, N]."""
    graph = GraphProto(name="layer")
    constant: Constant = layer.weight
    tensors: dict[str, Constant] = {}
    while isinstance(constant, Derived):
        graph.node.insert(0, constant.node)
        tensors |= {side.name: side for side in constant.inputs[1:] if side is not None}
        first = constant.inputs[0]
        assert first is not None, "a chain node has its data input"
        constant = first
    tensors[constant.name] = constant
    graph.initializer.extend(numpy_helper.from_array(load(part, document), name) for name, part in tensors.items())
    weight = layer.weight.name
    if not layer.transposed:
        graph.node.append(helper.make_node("Transpose", [weight], ["W_KN"], perm=[1, 0]))
        weight = "W_KN"
    _add_input(graph, given, given.zero if given is not None else 0, columns)
    graph.node.append(helper.make_node("MatMul", ["X_float", weight], ["Y"]))
    graph.output.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["T", rows]))
    return helper.make_model(graph, opset_imports=_standard(document), ir_version=max(8, document.proto.ir_version))


def packed_model(packed: PackedWeight, given: QuantisedInput | None, document: Document, rows: int) -> ModelProto:
    """The packed op alone, with the same input and output as `dense_model`."""
    graph = GraphProto(name="layer")
    tensors = packed.encode()
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    _add_input(graph, given, given.centre if given is not None else 0, packed.in_features)
    inputs = ["X_float", *tensors, *packed.no_bias]
    graph.node.append(helper.make_node(packed.op_type, inputs, ["Y"], domain=DOMAIN, in_features=packed.in_features))
    graph.output.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["T", rows]))
    opsets = [*_standard(document), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    version = max(9, document.proto.ir_version)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, functions=[packed.function])


def _add_input(graph: GraphProto, given: QuantisedInput | None, zero: int, columns: int) -> None:
    kind = TensorProto.FLOAT if given is None else given.kind
    graph.input.append(helper.make_tensor_value_info("X", kind, ["T", columns]))
    if given is None:
        graph.node.append(helper.make_node("Identity", ["X"], ["X_float"]))
        return
    point = np.array(zero, helper.tensor_dtype_to_np_dtype(kind))
    graph.initializer.append(numpy_helper.from_array(np.array(given.scale, np.float32), "X_scale"))
    graph.initializer.append(numpy_helper.from_array(point, "X_zero"))
    graph.node.append(helper.make_node("DequantizeLinear", ["X", "X_scale", "X_zero"], ["X_float"]))


def _standard(document: Document) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid("", document.opset)]
