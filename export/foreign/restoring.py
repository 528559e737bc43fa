"""A weight that packed layers hold and another node reads as it is: it is kept once, packed, and decoded for the other.

A runtime decodes it when it loads the file, as it does where it does not know the packed op.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import FunctionProto, NodeProto, TensorProto, helper

from ..layouts import DOMAIN
from .linears import SWAP, Linear
from .weights import Derived, Stored, source_of

_DECODED = "weight_NK"
"""The value in every layout's function that is the dense weight [N, K]."""
EXACT_VALUES = ("float32", "float16")


@dataclass(frozen=True)
class Restorable:
    """A dense float tensor of the main graph whose values are those of a packed weight, transposed or not."""

    name: str
    element_type: int
    transposed: bool


def restorable(layer: Linear, values: str) -> Restorable | None:
    """The tensor that a layer's packed weight can be decoded to, number for number; None where it cannot."""
    source = source_of(layer.weight)
    if values not in EXACT_VALUES or not isinstance(source, Stored):
        return None
    if source.owner.parent is not None or source.owner.is_function or not isinstance(source.tensor, TensorProto):
        return None
    known = source.tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and len(source.tensor.dims) == 2
    swaps = _swaps(layer)
    if not known or swaps is None or source.name not in source.owner.initializers:
        return None
    return Restorable(source.name, source.tensor.data_type, swaps % 2 == 1)


def _swaps(layer: Linear) -> int | None:
    """How many transpositions lead from the stored tensor to W [N, K]; None where the chain does more than that."""
    swaps, constant = int(layer.transposed), layer.weight
    while isinstance(constant, Derived):
        if constant.node.op_type not in ("Transpose", "Identity") or not constant.inputs:
            return None
        swaps += constant.node.op_type == "Transpose"
        first = constant.inputs[0]
        assert first is not None, "a chain node has its data input"
        constant = first
    return swaps


def weight_function(function: FunctionProto) -> FunctionProto:
    """The part of a packed op's function that decodes the weight, as a function of its own."""
    wanted: set[str] = {_DECODED}
    nodes: list[NodeProto] = []
    for node in reversed(function.node):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted.update(node.input)
    inputs = [name for name in function.input if name in wanted]
    return helper.make_function(
        DOMAIN, f"{function.name}Weight", inputs, [_DECODED], nodes, list(function.opset_import), ["in_features"]
    )


def restoring_nodes(
    target: Restorable, function: FunctionProto, tensors: Sequence[str], columns: int
) -> list[NodeProto]:
    """Nodes from the packed tensors to the dense one, under its own name."""
    steps: list[tuple[str, list[str], dict[str, object]]] = [
        (function.name, list(tensors), {"domain": DOMAIN, "in_features": columns})
    ]
    if target.element_type != TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": target.element_type}))
    if target.transposed:
        steps.append(("Transpose", [], {"perm": SWAP}))
    nodes, value = [], ""
    for place, (op_type, inputs, attributes) in enumerate(steps):
        output = target.name if place == len(steps) - 1 else f"{target.name}.decoded_{place}"
        nodes.append(helper.make_node(op_type, [value, *inputs][place == 0 :], [output], **attributes))  # type: ignore[arg-type]
        value = output
    return nodes
