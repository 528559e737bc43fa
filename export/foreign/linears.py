"""Finding the linear layers of a graph: products with a constant matrix, and the bias that can be folded into them.

Legend: N out_features, K in_features. A layer is Y = X W^T with W [N, K].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from .bodies import Body, Readers, Shape, ValueTypes, node_title
from .document import Document
from .operators import has_weights, operator, weight_places
from .pointwise import convolution_form, einsum_form
from .tensors import float32_values
from .weights import (
    Constant,
    Folded,
    NotConstant,
    Stored,
    folded_nodes,
    has_references,
    load,
    parts_of,
    source_of,
    trace,
)

SWAP = (1, 0)
"""Permutation that transposes a matrix."""
_BIG_WEIGHT = 1024
"""Elements from which on a constant of another operator gets its line in the report."""


@dataclass(frozen=True)
class Addend:
    """What is added to a Gemm's product and is no bias of the layer: the value `name`, times `scale`."""

    name: str
    scale: float


CENTRES: dict[int, int] = {TensorProto.UINT8: 128, TensorProto.INT8: 0}
"""The zero point with which the integers of a type are those of int8."""


@dataclass(frozen=True)
class QuantisedInput:
    """The input of a layer: `name` holds integers of the type `kind`, which stand for (q - zero) * scale."""

    name: str
    scale_name: str
    kind: int
    scale: float
    zero: int

    @property
    def centre(self) -> int:
        """The zero point with which they are integers of int8."""
        return CENTRES[self.kind]

    @property
    def dtype(self) -> np.dtype:
        """The type as numpy has it."""
        return helper.tensor_dtype_to_np_dtype(self.kind)


@dataclass(frozen=True)
class Linear:
    """A product that a packed op can stand for.

    The packed op takes `x`, permuted by `x_perm` where that is set. Its result is multiplied by `alpha`, permuted by
    `y_perm`, and `addend` is added; it is written to `output`. `bias_N`, made of the constant `bias`
    (`scaled`: times a number), goes into the packed op. `transposed`: the
    weight's value is W^T [K, N] and not W [N, K]. `leading` ones precede the weight's two dimensions. `places` are the
    nodes that it stands for, the product first. Where `integers` are set, X is made of them with their `centre`
    as the zero point, in place of `x`. With `strides` only every so many places of X's last axes are taken, before
    anything else. `x_shape` is that of a convolution's input, as far as it is known.
    """

    body: Body
    places: tuple[int, ...]
    weight: Constant
    transposed: bool
    x: str
    output: str
    x_perm: tuple[int, ...] | None = None
    y_perm: tuple[int, ...] | None = None
    alpha: float = 1.0
    addend: Addend | None = None
    bias_N: NDArray[np.float32] | None = field(default=None, compare=False)
    bias: Constant | None = None
    scaled: bool = False
    integers: QuantisedInput | None = None
    strides: tuple[int, ...] = ()
    x_shape: Shape = ()

    @property
    def node(self) -> NodeProto:
        """The product's node."""
        return self.body.nodes[self.places[0]]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a Conv of one point, whose weight [N, K, 1, ...] has the ones at the end."""
        return self.node.op_type == "Conv"

    def weight_matrix(self, document: Document) -> NDArray:
        """W [N, K] in its own element type; raises ValueError where a chain of nodes cannot be computed."""
        matrix = load(self.weight, document)
        matrix = matrix.reshape(matrix.shape[:2] if self.is_convolution else matrix.shape[-2:])
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)


@dataclass(frozen=True)
class Left:
    """A product with a constant weight, or a big weight of another operator, that has no packed form, and why."""

    body: Body
    place: int
    weight: Constant | None
    reason: str

    @property
    def node(self) -> NodeProto:
        """Its node."""
        return self.body.nodes[self.place]


def find_linears(document: Document, bodies: list[Body], readers: Readers, types: ValueTypes) -> list[Linear | Left]:
    """Every layer with a constant weight, in the order of the file."""
    finder, computing = _Finder(document, readers, types), folded_nodes(bodies)
    places = [(body, place) for body in bodies for place in range(len(body.nodes))]
    return [
        layer for body, place in places if (id(body), place) not in computing for layer in finder.match(body, place)
    ]


Matcher = Callable[[Body, int, int, Constant], Linear | str]
"""Body, place of the product, which input is the weight, and the weight; the layer, or why there is none."""


class _Finder:
    def __init__(self, document: Document, readers: Readers, types: ValueTypes) -> None:
        self._document, self._readers, self._types = document, readers, types

    def match(self, body: Body, place: int) -> list[Linear | Left]:
        """The layers that a node is: one for each of its weights."""
        node = body.nodes[place]
        matchers: dict[tuple[str, str], Matcher] = {
            ("", "MatMul"): self._matmul,
            ("", "Gemm"): self._gemm,
            ("", "Conv"): self._convolution,
            ("", "Einsum"): self._einsum,
        }
        matcher = matchers.get(operator(node))
        if matcher is None or len(node.input) < 2:
            return list(self._others(body, place))
        layer = self._product(body, place, matcher)
        return [] if layer is None else [layer]

    def _product(self, body: Body, place: int, match: Matcher) -> Linear | Left | None:
        node = body.nodes[place]
        left, right = (trace(body, name) for name in node.input[:2])
        if not isinstance(left, NotConstant) and not isinstance(right, NotConstant):
            return Left(body, place, right, "both sides are constant: the runtime multiplies them once, at load")
        for side, weight in ((1, right), (0, left)):
            if not isinstance(weight, NotConstant):
                try:
                    outcome = match(body, place, side, weight)
                except (ValueError, TypeError) as error:
                    outcome = f"its attributes cannot be read: {error}"
                return Left(body, place, weight, outcome) if isinstance(outcome, str) else outcome
            if weight.stored is not None:
                return Left(body, place, weight.stored, weight.reason)
        return None

    def _matmul(self, body: Body, place: int, side: int, weight: Constant) -> Linear | str:
        node = body.nodes[place]
        dimensions = rank_of(weight)
        x = node.input[1 - side]
        rank = self._types.rank(body, x)
        if dimensions < 2:
            return "the weight is a vector, not a matrix"
        if dimensions > 2 and (any(size != 1 for size in shape_of(weight)[:-2]) or (rank or 0) < dimensions):
            return f"the weight has {dimensions} dimensions: a batch of matrices, or one that adds dimensions"
        if side == 1:
            return self._with_add(Linear(body, (place,), weight, True, x, node.output[0]))
        if rank is None:
            return "the weight is on the left of an input whose number of dimensions is unknown"
        swap = None if rank == 1 else (*range(rank - 2), rank - 1, rank - 2)
        return Linear(body, (place,), weight, False, x, node.output[0], swap, swap)

    def _gemm(self, body: Body, place: int, side: int, weight: Constant) -> Linear | str:
        node = body.nodes[place]
        if rank_of(weight) != 2:
            return f"the weight of a Gemm has {rank_of(weight)} dimensions"
        if has_references(node):
            return "its attributes are those of the enclosing function, so that each caller may give others"
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        swapped = [bool(attributes.get(name, 0)) for name in ("transA", "transB")]
        alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
        addend = Addend(node.input[2], beta) if len(node.input) > 2 and node.input[2] and beta != 0 else None
        x, output = node.input[1 - side], node.output[0]
        if side == 0:  # Y^T = B'^T A'^T: the other side, transposed, is the layer's input
            x_perm = None if swapped[1] else SWAP
            return Linear(body, (place,), weight, swapped[0], x, output, x_perm, SWAP, alpha, addend)
        x_perm = SWAP if swapped[0] else None
        layer = Linear(body, (place,), weight, not swapped[1], x, output, x_perm, None, alpha, addend)
        return self._fold_gemm_bias(layer)

    def _convolution(self, body: Body, place: int, side: int, weight: Constant) -> Linear | str:
        node = body.nodes[place]
        if side == 0:
            return "the input of the convolution is constant"
        form = convolution_form(node, shape_of(weight))
        if isinstance(form, str) or has_references(node):
            return form if isinstance(form, str) else "its attributes are those of the enclosing function"
        x, output = node.input[0], node.output[0]
        shape = self._types.shape(body, x) or ()
        layer = Linear(
            body, (place,), weight, False, x, output, form.x_perm, form.y_perm, strides=form.strides, x_shape=shape
        )
        if len(node.input) < 3 or not node.input[2]:
            return layer
        bias = self._bias(layer, node.input[2], 1)
        return "its bias is computed" if bias is None else replace(layer, bias=bias[0], bias_N=bias[1])

    def _einsum(self, body: Body, place: int, side: int, weight: Constant) -> Linear | str:
        node = body.nodes[place]
        if len(node.input) != 2 or rank_of(weight) != 2:
            return (
                f"an einsum of {len(node.input)} values and a weight of {rank_of(weight)} dimensions has no packed form"
            )
        form = einsum_form(node, side)
        if isinstance(form, str):
            return form
        x, output = node.input[1 - side], node.output[0]
        return Linear(body, (place,), weight, form.transposed, x, output, form.x_perm, form.y_perm)

    def _fold_gemm_bias(self, layer: Linear) -> Linear:
        """C becomes the layer's bias where it is one row of constants and nothing is multiplied in between."""
        if layer.addend is None or layer.alpha != 1:
            return layer
        bias = self._bias(layer, layer.addend.name, 2)
        if bias is None:
            return layer
        constant, values_N = bias
        scaled_N = (np.float32(layer.addend.scale) * values_N).astype(np.float32)
        scaled = layer.addend.scale != 1
        return replace(layer, addend=None, bias=constant, bias_N=scaled_N, scaled=scaled)

    def _with_add(self, layer: Linear) -> Linear:
        """Fold an Add of a constant row that is the only reader of the product."""
        readers = self._readers.of(layer.body, layer.output)
        if len(readers) != 1 or readers[0][0] is not layer.body or readers[0][1] is None:
            return layer
        place = readers[0][1]
        node = layer.body.nodes[place]
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            return layer
        other = next((name for name in node.input if name != layer.output), None)
        rank = self._types.rank(layer.body, layer.x)
        bias = None if other is None else self._bias(layer, other, rank or 1)
        if bias is None:
            return layer
        return replace(layer, places=(*layer.places, place), output=node.output[0], bias=bias[0], bias_N=bias[1])

    def _bias(self, layer: Linear, name: str, rank: int) -> tuple[Constant, NDArray[np.float32]] | None:
        """A constant that adds one number to each output feature and no dimension, spread to [N]."""
        constant = trace(layer.body, name)
        if isinstance(constant, NotConstant) or rank_of(constant) > rank:
            return None
        shape, out_features = shape_of(constant), _out_features(layer)
        row = shape[-1] if shape else 1
        if any(size != 1 for size in shape[:-1]) or row not in (1, out_features):
            return None
        try:
            values = load(constant, self._document)
        except ValueError:
            return None  # not a bias that can be folded; the runtime computes it as before
        if values.dtype not in (np.float32, np.float16):
            return None
        return constant, np.ascontiguousarray(np.broadcast_to(float32_values(values).reshape(-1), out_features))

    def _others(self, body: Body, place: int) -> Iterator[Left]:
        """Lines in the report for the weights of an operator without packed form, and big constants of any other."""
        node = body.nodes[place]
        known = has_weights(node)
        for index in weight_places(node) if known else range(0 if node.op_type in _CARRIERS else len(node.input)):
            constant = trace(body, node.input[index]) if node.input[index] else None
            if isinstance(constant, NotConstant):
                constant = constant.stored
            if constant is None or rank_of(constant) < 2:
                continue
            if known or np.prod(shape_of(constant), dtype=float) >= _BIG_WEIGHT:
                yield Left(body, place, constant, f"'{node.op_type}' has no packed form")


_CARRIERS = ("Identity", "Transpose", "Cast", "DequantizeLinear", "QuantizeLinear")


def shape_of(constant: Constant) -> tuple[int, ...]:
    """Shape of a constant; raises nothing: a bad permutation is found when the values are computed."""
    if isinstance(constant, Stored):
        return tuple(constant.tensor.dims)
    if isinstance(constant, Folded):
        return tuple(constant.array.shape)
    first = constant.inputs[0] if constant.inputs else None
    if first is None:
        return ()
    shape = shape_of(first)
    if constant.node.op_type != "Transpose":
        return shape
    perm = next((list(item.ints) for item in constant.node.attribute if item.name == "perm"), range(len(shape))[::-1])
    return tuple(shape[axis] for axis in perm if -len(shape) <= axis < len(shape))


def rank_of(constant: Constant) -> int:
    """Number of dimensions of a constant."""
    return len(shape_of(constant))


def _out_features(layer: Linear) -> int:
    if layer.is_convolution:
        return shape_of(layer.weight)[0]
    return shape_of(layer.weight)[-1 if layer.transposed else -2]


def weight_title(layer: Linear | Left) -> str:
    """The name under which the file stores the weight."""
    if layer.weight is None:
        return ""
    source = source_of(layer.weight)
    stored = [part for part in parts_of(source) if isinstance(part, Stored)]
    return max(stored, key=lambda part: (part.bytes, len(part.tensor.dims)), default=source).name


def layer_title(layer: Linear | Left) -> str:
    """Where the layer is: its body and its node."""
    title = node_title(layer.node)
    return f"{layer.body.title}/{title}" if layer.body.title else title


def constants_of(layer: Linear) -> list[Constant]:
    """All constants that the layer's nodes read and the packed op makes superfluous."""
    return [*parts_of(layer.weight), *(parts_of(layer.bias) if layer.bias is not None else [])]
