"""Convolutions of more than one point: a product of all that a filter sees of each place.

X is put with its channels last, and its shifted copies, one for each point of the kernel, beside one another. That
costs as many copies of X as the kernel has points, which pays where there are many filters and few links.

Legend: N filters, C channels, P points of the kernel, K = P C.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from ..bodies import Body
from ..document import Document
from ..left_weights import attributes_of
from ..linears import shape_of
from ..weights import load
from .batches import MOST_ELEMENTS, diagonal
from .expansion import Context, Emitter, Expansion, Feeds, Form, Matrix, constant_at, constants_of_node, input_at

_LINE, _SIDE, _VOLUME = 256, 32, 8
"""Places of an axis that a graph does not name, with one axis, with two, and with more."""
_GAIN = 1.05
"""Conv after Conv stays in ONNX Runtime's own order of channels, which one alone does not show."""
_DENSEST = 0.4
_FEWEST_COLUMNS, _FEWEST_FILTERS = 128, 16
"""With fewer, the copies of X cost more than all of a dense convolution."""
_MOST_COPIED = 1 << 26
"""Numbers in all copies of X."""
_END = np.iinfo(np.int64).max


def convolution(body: Body, place: int, context: Context) -> Expansion | str:
    """Conv(X [B, C, ...], W [N, C / groups, ...], bias), of any strides, dilations and pads."""
    node = body.nodes[place]
    attributes = attributes_of(node)
    weight, bias = constant_at(body, node, 1), input_at(node, 2)
    shape = () if weight is None else shape_of(weight)
    if weight is None or len(shape) < 3 or (bias and constant_at(body, node, 2) is None):
        return "its weight or its bias is computed"
    axes, kernel, groups = len(shape) - 2, shape[2:], int(attributes.get("group", 1))
    channels, points = shape[1] * groups, math.prod(kernel)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return "a convolution whose pads follow from its input has no packed form"
    if points * channels < _FEWEST_COLUMNS or shape[0] < _FEWEST_FILTERS or shape[1] == 1:
        return "a convolution so small, or of one channel a group, is faster as it is"
    if groups < 1 or shape[0] % groups or shape[0] * channels * points > MOST_ELEMENTS:
        return f"a convolution of {groups} groups and this size has no packed form"
    strides, dilations = (_numbers(attributes.get(name), axes) for name in ("strides", "dilations"))
    pads = [int(size) for size in attributes.get("pads", [0] * 2 * axes)]
    if strides is None or dilations is None or len(pads) != 2 * axes or min(pads) < 0:
        return "its strides, dilations and pads do not fit its weight"
    inner = [*range(2, axes + 2)]

    def forms(document: Document) -> list[Form]:
        array = load(weight, document)
        if array.dtype != np.float32:
            raise ValueError(f"a convolution in {array.dtype} has no packed form")
        density = np.count_nonzero(array) / max(1, array.size)
        if not 0 < density <= _DENSEST and density < 1:
            raise ValueError("a convolution with so many links is faster as it is")
        return [Form("all that a filter sees", (Matrix(_matrix(array, groups)),), write)]

    def write(emitter: Emitter) -> None:
        (x,) = emitter.node("Transpose", [node.input[0]], perm=[0, *inner, 1])
        if any(pads):
            sizes = np.array([0, *pads[:axes], 0, 0, *pads[axes:], 0], np.int64)
            (x,) = emitter.node("Pad", [x, emitter.constant(f"{node.output[0]}.pads", sizes)])
        copies = []
        for point in itertools.product(*map(range, kernel)):
            starts = np.array([at * step for at, step in zip(point, dilations, strict=True)], np.int64)
            rest = [(size - 1 - at) * step for size, at, step in zip(kernel, point, dilations, strict=True)]
            bounds = [starts, np.array([-size or _END for size in rest]), np.arange(1, axes + 1), np.array(strides)]
            names = [emitter.constant(f"{node.output[0]}.slice", array) for array in bounds]
            copies += emitter.node("Slice", [x, *names])
        if len(copies) > 1:
            (x,) = emitter.node("Concat", copies, axis=-1)
        else:
            (x,) = copies
        emitter.node(
            "Transpose", [emitter.product(0, x, bias)], [node.output[0]], perm=[0, axes + 1, *range(1, axes + 1)]
        )

    missing = {1: _LINE, 2: _SIDE}.get(axes, _VOLUME)
    given = (*(context.types.shape(body, node.input[0]) or ()), *[None] * (axes + 2))[2 : axes + 2]
    places = [missing if size is None or size < 1 else size for size in given]
    padded = [size + pads[axis] + pads[axis + axes] for axis, size in enumerate(places)]
    if channels * points * math.prod(padded) > _MOST_COPIED:
        return f"the copies of its input of {'x'.join(map(str, places))} places would take too much memory"

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        return {node.input[0]: rng.standard_normal((tokens, channels, *places)).astype(np.float32)}

    words = f"an input of {'x'.join(map(str, (1, channels, *places)))}"
    kept = constants_of_node(body, node)[:1]
    return Expansion(body, (place,), weight, kept, forms, feeds, shape=shape, timed_on=words, gain=_GAIN)


def _numbers(value: list[int] | None, axes: int) -> list[int] | None:
    """Strides or dilations, one for each axis; None where they are not."""
    numbers = [1] * axes if value is None else [int(number) for number in value]
    return numbers if len(numbers) == axes and min(numbers) >= 1 else None


def _matrix(weight: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """W [N, P C] of filters [N, C / groups, ...]."""
    rows, channels = weight.shape[:2]
    filters_NCP = weight.reshape(rows, channels, -1)
    points = filters_NCP.shape[2]
    parts = [diagonal(filters_NCP[:, :, point].reshape(groups, rows // groups, channels)) for point in range(points)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
