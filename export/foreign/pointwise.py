"""Operators that are a linear layer in another notation: convolutions of one point, and einsums of a matrix.

Legend: N out_features, K in_features.
"""

from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How X and Y of an operator are those of a linear layer: permuted, X with only some places of its last axes.

    `transposed`: the weight is W^T [K, N].
    """

    x_perm: Axes | None
    y_perm: Axes | None
    strides: Axes = ()
    transposed: bool = False


def convolution_form(node: NodeProto, weight_shape: tuple[int, ...]) -> Form | str:
    """A Conv whose kernel is one point, as a layer over its channels; or why it is none."""
    attributes = _attributes(node)
    rank = len(weight_shape)
    if rank < 3 or any(size != 1 for size in weight_shape[2:]):
        return "a convolution of more than one point has no packed form"
    if int(attributes.get("group", 1)) != 1:
        return f"a convolution of {attributes['group']} groups has no packed form"
    padding = attributes.get("auto_pad", b"NOTSET")
    if any(attributes.get("pads", ())) or padding not in (b"NOTSET", b"VALID"):
        return "a convolution of one point that pads its input has no packed form"
    strides = tuple(int(step) for step in attributes.get("strides", ()))
    if len(strides) not in (0, rank - 2) or any(step < 1 for step in strides):
        return f"its strides {list(strides)} do not fit its weight"
    moving = strides if any(step != 1 for step in strides) else ()
    return Form((0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1)), moving)


def einsum_form(node: NodeProto, side: int) -> Form | str:
    """An Einsum of X and a matrix on `side`, where each axis of X but one is an axis of Y; or why it is none."""
    equation = _attributes(node).get("equation", b"").decode().replace(" ", "")
    inputs, arrow, y = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2 or "." in equation:
        return f"the einsum {equation!r} is not that of a linear layer"
    weight, x = terms[side], terms[1 - side]
    inner, outer = [letter for letter in weight if letter in x], [letter for letter in weight if letter in y]
    distinct = all(len(set(term)) == len(term) for term in (weight, x, y))
    if not distinct or len(weight) != 2 or len(inner) != 1 or len(outer) != 1 or inner == outer:
        return f"the einsum {equation!r} is not that of a linear layer"
    kept = [letter for letter in x if letter != inner[0]]
    if sorted(y) != sorted([*kept, outer[0]]):
        return f"the einsum {equation!r} is not that of a linear layer"
    product = [*kept, outer[0]]
    x_perm = tuple(x.index(letter) for letter in [*kept, inner[0]])
    y_perm = tuple(product.index(letter) for letter in y)
    return Form(_moving(x_perm), _moving(y_perm), (), weight[0] == inner[0])


def _moving(perm: Axes) -> Axes | None:
    return None if perm == tuple(range(len(perm))) else perm


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
