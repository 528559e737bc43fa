"""Shape and number of links of a weight that is left as it is, in any operator's own form."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from .document import Document
from .linears import Left
from .operators import operator, zero_point_name
from .weights import load, trace_stored

Facts = tuple[tuple[int, ...], int]
"""Shape, and how many weights are not zero."""


def left_facts(layer: Left, document: Document) -> Facts | None:
    """The facts of a weight; None where it has none, or cannot be computed."""
    if layer.weight is None:
        return None
    try:
        array = load(layer.weight, document)
        count = _COUNTERS.get(operator(layer.node), _count)
        return count(layer, array, document)
    except (ValueError, TypeError, IndexError, KeyError):
        return None  # the file claims something that does not fit together; the runtime will say what


def _count(layer: Left, array: NDArray, document: Document) -> Facts | None:
    if array.dtype.kind in "USOb":
        return None
    zero = _input(layer, zero_point_name(layer.node), document)
    if zero is None or zero.size == 1:
        nothing = 0 if zero is None else zero.reshape(())
    else:  # one for each output: columns of a product, filters of a convolution
        filters = "Conv" in layer.node.op_type
        nothing = zero.reshape([-1, *[1] * (array.ndim - 1)] if filters else [-1])
    return tuple(array.shape), int(np.count_nonzero(array != nothing))


def _count_nibbles(layer: Left, array: NDArray, document: Document) -> Facts | None:
    """MatMulNBits: B [N, blocks, bytes], two numbers in a byte, and a zero point a block, 8 where none is given."""
    attributes = attributes_of(layer.node)
    out_features, in_features, bits = (int(attributes[name]) for name in ("N", "K", "bits"))
    if bits != 4 or out_features * in_features > 2 * array.size:
        return None
    blocks = math.ceil(in_features / int(attributes["block_size"]))
    quants = nibbles(array.reshape(out_features, blocks, -1))
    zero = _input(layer, layer.node.input[3] if len(layer.node.input) > 3 else "", document)
    if zero is not None and zero.dtype == np.uint8:
        zero = nibbles(zero.reshape(out_features, -1))[:, :blocks]
    nothing = 8 if zero is None else zero.reshape(out_features, blocks, 1)
    mask_NK = (quants != nothing).reshape(out_features, -1)[:, :in_features]
    return (out_features, in_features), int(np.count_nonzero(mask_NK))


def nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two numbers for each byte of the last axis, the low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _input(layer: Left, name: str, document: Document) -> NDArray | None:
    stored = trace_stored(layer.body, name) if name else None
    return None if stored is None else stored.load(document)


_COUNTERS: dict[tuple[str, str], Callable[[Left, NDArray, Document], Facts | None]] = {
    ("com.microsoft", "MatMulNBits"): _count_nibbles
}
