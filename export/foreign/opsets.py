"""Bodies of packed ops for older opsets.

The layouts write their functions for one opset. A function must import the opset of the file that it is put in (the
ONNX checker demands it, and ONNX Runtime resolves the inlined nodes by the file's opset), so its nodes are rewritten
where that opset lacks an operator or attribute. Each rule below states an identity of the two forms.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

OLDEST_IR_WITH_FUNCTIONS = 9
"""Functions came with version 8, default values of their attributes with 9."""

OLDEST_CAST_LIKE = 15

Nodes = list[NodeProto]


class OpsetError(Exception):
    """A function cannot be written for an opset; the message says which of its operators is missing."""


def function_for_opset(function: FunctionProto, opset: int, value_types: Mapping[str, int]) -> FunctionProto:
    """The same function over the standard operators of `opset`.

    Args:
        function: a layout's function.
        opset: the version that the file imports.
        value_types: element types (TensorProto.DataType) of the function's inputs where they are known.

    Raises:
        OpsetError: no rule rewrites an operator that the opset lacks.
    """
    lowering = _Lowering(function, opset, value_types)
    result = FunctionProto()
    result.CopyFrom(function)
    del result.node[:]
    for node in function.node:
        result.node.extend(lowering.lower(node))
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    for node in result.node:
        _check_available(node, opset, function.name)
    return result


def shielded(function: FunctionProto) -> FunctionProto:
    """The same function, whose input X goes through a Sum of one term first.

    In a file with quantised activations ONNX Runtime would otherwise move their DequantizeLinear into the inlined body
    and quantise the decoded float32 weights to int8; with some type combinations the moved nodes are not even valid.
    It leaves a Sum alone.
    """
    result = FunctionProto()
    result.CopyFrom(function)
    x, inner = function.input[0], f"{function.input[0]}_shielded"
    for node in result.node:
        for place, name in enumerate(node.input):
            if name == x:
                node.input[place] = inner
    result.node.insert(0, helper.make_node("Sum", [x], [inner]))
    return result


class _Lowering:
    """Rewrites node by node; names of added values are unique within the function."""

    def __init__(self, function: FunctionProto, opset: int, value_types: Mapping[str, int]) -> None:
        self._opset, self._types = opset, value_types
        self._writers = {name: node for node in function.node for name in node.output if name}
        self._added = 0
        self.results = frozenset(function.output)

    def lower(self, node: NodeProto) -> Nodes:
        since, rule = _RULES.get(node.op_type, (0, None))
        return [node] if rule is None or self._opset >= since else rule(self, node)

    def value(self) -> str:
        self._added += 1
        return f"lowered_{self._added}"

    def constant(self, array: np.ndarray) -> tuple[str, Nodes]:
        """The name of a new constant and the nodes that make it; one of uint8 is cast (see `small_constant`)."""
        name = self.value()
        if array.dtype == np.uint8:
            wide = self.value()
            return name, [_constant(wide, array.astype(np.int64)), _cast(wide, name, TensorProto.UINT8)]
        return name, [_constant(name, array)]

    def constant_value(self, name: str) -> np.ndarray | None:
        """The value of a constant, or of one that is cast; None where it is none."""
        writer = self._writers.get(name)
        if writer is not None and writer.op_type == "Cast":
            value = self.constant_value(writer.input[0])
            return None if value is None else value.astype(helper.tensor_dtype_to_np_dtype(_attributes(writer)["to"]))
        if writer is None or writer.op_type != "Constant" or writer.attribute[0].name != "value":
            return None
        return numpy_helper.to_array(writer.attribute[0].t)

    def type_of(self, name: str) -> int | None:
        return self._types.get(name)

    def expanded_value(self, name: str) -> np.ndarray | None:
        """The value of a constant, or the one that fills a tensor; None where there is none."""
        writer = self._writers.get(name)
        if writer is not None and writer.op_type == "Expand":
            return self.expanded_value(writer.input[0])
        if writer is not None and writer.op_type == "ConstantOfShape":
            filling = _attributes(writer).get("value")
            return np.zeros(1, np.float32) if filling is None else numpy_helper.to_array(filling)
        return self.constant_value(name)


def _constant(name: str, array: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _cast(source: str, name: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [name], to=kind)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _bitwise_and(lowering: _Lowering, node: NodeProto) -> Nodes:
    """x & (2^n - 1) = x mod 2^n, for unsigned x."""
    for mask, other in ((node.input[1], node.input[0]), (node.input[0], node.input[1])):
        value = lowering.constant_value(mask)
        if value is None or value.size != 1 or value.dtype.kind != "u":
            continue
        modulus = int(value.reshape(())) + 1
        if modulus & (modulus - 1) == 0 and modulus <= np.iinfo(value.dtype).max:
            name, constants = lowering.constant(np.full(value.shape, modulus, value.dtype))
            return [*constants, helper.make_node("Mod", [other, name], list(node.output))]
    return [node]


def _cast_like(lowering: _Lowering, node: NodeProto) -> Nodes:
    """The type of the second input, where it is known, is written down."""
    kind = lowering.type_of(node.input[1])
    return [node] if kind is None else [helper.make_node("Cast", [node.input[0]], list(node.output), to=kind)]


def _shape(lowering: _Lowering, node: NodeProto) -> Nodes:
    """A part of the shape is a slice of it."""
    attributes = _attributes(node)
    if not attributes:
        return [node]
    whole = lowering.value()
    end = attributes.get("end", np.iinfo(np.int64).max)
    bounds = [lowering.constant(np.array([bound], np.int64)) for bound in (attributes.get("start", 0), end)]
    names = [name for name, _ in bounds]
    return [
        helper.make_node("Shape", [node.input[0]], [whole]),
        *(node for _, constants in bounds for node in constants),
        helper.make_node("Slice", [whole, *names], list(node.output)),
    ]


def _scatter_elements(lowering: _Lowering, node: NodeProto) -> Nodes:
    """Adding ones at places of a vector adds to each distinct place how often it occurs."""
    attributes = _attributes(node)
    if attributes.get("reduction", b"none") == b"none":
        return [node]
    ones = lowering.expanded_value(node.input[2])
    if attributes["reduction"] != b"add" or attributes.get("axis", 0) != 0 or ones is None or not (ones == 1).all():
        return [node]
    data, places = node.input[:2]
    wide, distinct, first, inverse, occurrences, counts, before, after = (lowering.value() for _ in range(8))
    return [
        _cast(places, wide, TensorProto.INT64),  # ONNX Runtime has no Unique of int32
        # Outputs that nobody reads have names too: ONNX Runtime 1.23 cannot fold a node that leaves some out.
        helper.make_node("Unique", [wide], [distinct, first, inverse, occurrences], sorted=1),
        _cast(occurrences, counts, tensor_type(ones)),
        helper.make_node("Gather", [data, distinct], [before], axis=0),
        helper.make_node("Add", [before, counts], [after]),
        helper.make_node("ScatterElements", [data, distinct, after], list(node.output), axis=0),
    ]


def _bitwise_xor(lowering: _Lowering, node: NodeProto) -> Nodes:
    """x ^ b = x + b - 2b ((x >> log2 b) mod 2) for one bit b, in float32, where uint8 numbers are exact."""
    value = lowering.constant_value(node.input[1])
    if value is None or value.size != 1 or value.dtype != np.uint8 or int(value.reshape(())).bit_count() != 1:
        return [node]
    bit = int(value.reshape(()))
    place, place_nodes = lowering.constant(np.array(bit.bit_length() - 1, np.uint8))
    two, two_nodes = lowering.constant(np.array(2, np.uint8))
    plus, plus_nodes = lowering.constant(np.array(bit, np.float32))
    double, double_nodes = lowering.constant(np.array(2 * bit, np.float32))
    moved, is_set, number, is_set_float, sum_, less, result = (lowering.value() for _ in range(7))
    return [
        *(*place_nodes, *two_nodes, *plus_nodes, *double_nodes),
        helper.make_node("BitShift", [node.input[0], place], [moved], direction="RIGHT"),
        helper.make_node("Mod", [moved, two], [is_set]),
        _cast(node.input[0], number, TensorProto.FLOAT),
        _cast(is_set, is_set_float, TensorProto.FLOAT),
        helper.make_node("Add", [number, plus], [sum_]),
        helper.make_node("Mul", [is_set_float, double], [less]),
        helper.make_node("Sub", [sum_, less], [result]),
        _cast(result, node.output[0], TensorProto.UINT8),
    ]


def _reshape(lowering: _Lowering, node: NodeProto) -> Nodes:
    """Without `allowzero`, 0 copies the size of the same dimension. Where a vector without elements is reshaped within
    a function that is 0 too. The float32 result may have its 0 anywhere: without elements it is made anew."""
    data, shape = node.input
    if node.output[0] not in lowering.results:
        return [helper.make_node("Reshape", [data, shape], list(node.output))]
    count, none, is_empty, empty, full = (lowering.value() for _ in range(5))
    branches: dict[str, Any] = {
        "then_branch": _branch([helper.make_node("ConstantOfShape", [shape], [empty])], empty),
        "else_branch": _branch([helper.make_node("Reshape", [data, shape], [full])], full),
    }
    return [
        helper.make_node("Size", [data], [count]),
        _constant(none, np.array(0, np.int64)),
        helper.make_node("Equal", [count, none], [is_empty]),
        helper.make_node("If", [is_empty], list(node.output), **branches),
    ]


def _branch(nodes: Nodes, output: str) -> onnx.GraphProto:
    """A branch of an If, over values of the graph around it."""
    return helper.make_graph(nodes, output, [], [onnx.ValueInfoProto(name=output)])


def _reduce(lowering: _Lowering, node: NodeProto) -> Nodes:
    """Axes were an attribute before they were an input."""
    if len(node.input) < 2:
        return [node]
    axes = lowering.constant_value(node.input[1])
    if axes is None:
        return [node]
    attributes = _attributes(node) | {"axes": axes.tolist()}
    return [helper.make_node(node.op_type, [node.input[0]], list(node.output), **attributes)]


_RULES: dict[str, tuple[int, Callable[[_Lowering, NodeProto], Nodes]]] = {
    "BitwiseAnd": (18, _bitwise_and),
    "BitwiseXor": (18, _bitwise_xor),
    "CastLike": (OLDEST_CAST_LIKE, _cast_like),
    "Shape": (15, _shape),
    "ScatterElements": (16, _scatter_elements),
    "ReduceMax": (18, _reduce),
    "ReduceMin": (18, _reduce),
    "ReduceMean": (18, _reduce),
    "Reshape": (14, _reshape),
}
"""The opset from which on an operator can stay as it is, and the rule for older ones."""


def _check_available(node: NodeProto, opset: int, function: str) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    try:
        schema: OpSchema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError as error:
        raise OpsetError(f"{function} needs {node.op_type}, which opset {opset} does not have") from error
    unknown = {item.name for item in node.attribute} - set(schema.attributes)
    if unknown or len(node.input) > schema.max_input:
        raise OpsetError(f"{function} needs a form of {node.op_type} that opset {opset} does not have")


def tensor_type(array: np.ndarray) -> int:
    """Element type of an array, as a TensorProto.DataType."""
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
