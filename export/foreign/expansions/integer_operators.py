"""The operators that multiply integers of 8 bits, as products of integers and what follows them.

Legend: N out_features, K in_features, T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from ..bodies import Body, Readers
from ..document import Document
from ..linears import shape_of
from ..weights import load
from .expansion import Context, Emitter, Expansion, Feeds, constant_at, constant_named, constants_of_node, input_at
from .integer_products import Finish, IntegerInput, IntegerProduct, IntegerWeight

_INTEGERS = {TensorProto.UINT8: np.dtype(np.uint8), TensorProto.INT8: np.dtype(np.int8)}


def matmul_integer(body: Body, place: int, context: Context) -> Expansion | str:
    """MatMulInteger(A, B, zero of A, zero of B), and the Cast to float32 that reads its sums."""
    node = body.nodes[place]
    cast = only_reader(body, node.output[0], context.readers)
    to_float = cast is not None and _is_cast_to_float(body.nodes[cast])
    places = (place, cast) if to_float and cast is not None else (place,)
    output = body.nodes[places[-1]].output[0]

    def finish(emitter: Emitter, sums: str, given: IntegerInput) -> None:
        del given
        if to_float:
            emitter.node("Identity", [sums], [output])
        else:
            emitter.node("Cast", [sums], [output], to=TensorProto.INT32)

    product = _product(body, node, context.document, (1, 2, 3), finish)
    if isinstance(product, str):
        return product
    return _expansion(body, places, product, _neighbours(body, node, output, context.readers))


def matmul_integer_to_float(body: Body, place: int, context: Context) -> Expansion | str:
    """com.microsoft.MatMulIntegerToFloat(A, B, scale of A, scale of B, zero of A, zero of B, bias)."""
    node = body.nodes[place]

    def finish(emitter: Emitter, sums: str, given: IntegerInput) -> None:
        del given
        (scale,) = emitter.node("Mul", [node.input[2], node.input[3]])
        _scale_and_add(emitter, sums, scale, input_at(node, 6), node.output[0])

    product = _product(body, node, context.document, (1, 4, 5), finish)
    return product if isinstance(product, str) else _expansion(body, (place,), product)


def dynamic_quantize_matmul(body: Body, place: int, context: Context) -> Expansion | str:
    """com.microsoft.DynamicQuantizeMatMul(A, B, scale of B, zero of B, bias): A is rounded to uint8 first."""
    del context
    node = body.nodes[place]
    weight = constant_at(body, node, 1)
    if weight is None:
        return "its weight is computed"

    def begin(emitter: Emitter) -> IntegerInput:
        name, scale, zero = emitter.node("DynamicQuantizeLinear", [node.input[0]], 3)
        return IntegerInput(name, zero, scale)

    def finish(emitter: Emitter, sums: str, given: IntegerInput) -> None:
        (scale,) = emitter.node("Mul", [given.scale, node.input[2]])
        _scale_and_add(emitter, sums, scale, input_at(node, 4), node.output[0])

    right = IntegerWeight(weight, constant_at(body, node, 3))
    return _expansion(body, (place,), IntegerProduct(np.dtype(np.uint8), right, begin, finish))


def qlinear_matmul(body: Body, place: int, context: Context) -> Expansion | str:
    """QLinearMatMul(a, its scale, its zero, b, its scale, its zero, scale of y, zero of y)."""
    node = body.nodes[place]
    scales = _scalars(body, node, (1, 4), context.document)
    if isinstance(scales, str):
        return scales

    def finish(emitter: Emitter, sums: str, given: IntegerInput) -> None:
        del given
        _quantise(emitter, sums, scales, node.input[6:8], node.output[0])

    product = _product(body, node, context.document, (3, 2, 5), finish)
    return product if isinstance(product, str) else _expansion(body, (place,), product)


def qgemm(body: Body, place: int, context: Context) -> Expansion | str:
    """com.microsoft.QGemm(A, its scale, its zero, B, its scale, its zero, C, scale of y, zero of y).

    C is int32, in steps of the product of the scales; without a scale of y the result is float32.
    """
    node = body.nodes[place]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    scales = _scalars(body, node, (1, 4), context.document)
    if isinstance(scales, str) or attributes.get("transA", 0):
        return scales if isinstance(scales, str) else "its input is transposed"
    factor_N = scales * np.float32(attributes.get("alpha", 1.0))
    addend = constant_at(body, node, 6)
    if input_at(node, 6) and addend is None:
        return "its bias is computed"

    def finish(emitter: Emitter, sums: str, given: IntegerInput) -> None:
        del given
        if input_at(node, 7):
            _quantise(emitter, sums, factor_N, node.input[7:9], node.output[0])
        else:
            emitter.node("Mul", [sums, emitter.constant(f"{node.output[0]}.scale", factor_N)], [node.output[0]])

    by_rows = bool(attributes.get("transB", 0))
    bias_N = None if addend is None else load(addend, context.document).reshape(-1)
    product = _product(body, node, context.document, (3, 2, 5), finish, by_rows, bias_N)
    return product if isinstance(product, str) else _expansion(body, (place,), product)


def _product(
    body: Body,
    node: NodeProto,
    document: Document,
    inputs: tuple[int, int, int],
    finish: Finish,
    by_rows: bool = False,
    bias_N: NDArray | None = None,
) -> IntegerProduct | str:
    """The product of the operator's first input; `inputs` are its weight, the zero of its input, and of its weight."""
    weight = constant_at(body, node, inputs[0])
    zero_of_weight = input_at(node, inputs[2])
    if weight is None or (zero_of_weight and constant_at(body, node, inputs[2]) is None):
        return "its weight is computed"
    zero_of_x = input_at(node, inputs[1])
    dtype = _integer_type(body, node.input[0], zero_of_x, document)
    if dtype is None:
        return "the type of its input is unknown"
    given = IntegerInput(node.input[0], zero_of_x)
    right = IntegerWeight(weight, constant_at(body, node, inputs[2]), by_rows)
    return IntegerProduct(dtype, right, lambda emitter: given, finish, bias_N)


def _integer_type(body: Body, name: str, zero: str, document: Document) -> np.dtype | None:
    """uint8 or int8, by what writes an input or by its zero point; None where that does not say."""
    owner = body.find(name)
    writer = None if owner is None or name not in owner.producers else owner.nodes[owner.producers[name]]
    if writer is not None and writer.op_type == "DynamicQuantizeLinear":
        return np.dtype(np.uint8)
    point = zero or (input_at(writer, 2) if writer is not None and writer.op_type == "QuantizeLinear" else "")
    found = constant_named(body, point)
    if found is not None:
        dtype = load(found, document).dtype
        return dtype if dtype in _INTEGERS.values() else None
    for value in getattr(body.root.proto, "input", ()) if owner is not None and name in owner.inputs else ():
        if getattr(value, "name", None) == name:
            return _INTEGERS.get(value.type.tensor_type.elem_type)
    return None


def _scalars(body: Body, node: NodeProto, places: Sequence[int], document: Document) -> NDArray[np.float32] | str:
    """The product of constant scales, each one number or one for each output."""
    product = np.ones((), np.float32)
    for place in places:
        found = constant_at(body, node, place)
        if found is None:
            return "its scales are computed"
        product = product * load(found, document).astype(np.float32).reshape(-1)
    return product.reshape(()) if product.size == 1 else product


def _quantise(emitter: Emitter, sums: str, scale: NDArray, step: Sequence[str], output: str) -> None:
    """Round the sums times the scale to the steps of the output, a scale and a zero point."""
    (value,) = emitter.node("Mul", [sums, emitter.constant(f"{output}.scale", scale.astype(np.float32))])
    emitter.node("QuantizeLinear", [value, *filter(None, step)], [output])


def _scale_and_add(emitter: Emitter, sums: str, scale: str, bias: str, output: str) -> None:
    if not bias:
        emitter.node("Mul", [sums, scale], [output])
        return
    (scaled,) = emitter.node("Mul", [sums, scale])
    emitter.node("Add", [scaled, bias], [output])


def only_reader(body: Body, name: str, readers: Readers) -> int | None:
    """The place of the one node that reads a value, in the same body; None where there are others."""
    found = readers.of(body, name)
    return found[0][1] if len(found) == 1 and found[0][0] is body else None


def _is_cast_to_float(node: NodeProto) -> bool:
    return node.op_type == "Cast" and any(item.name == "to" and item.i == TensorProto.FLOAT for item in node.attribute)


def _neighbours(body: Body, node: NodeProto, output: str, readers: Readers) -> tuple[int, ...]:
    """DynamicQuantizeLinear before and the Mul by the scales after, which ONNX Runtime fuses with the product."""
    before = body.producers.get(node.input[0])
    after = only_reader(body, output, readers)
    if before is None or body.nodes[before].op_type != "DynamicQuantizeLinear":
        return ()
    if after is None or body.nodes[after].op_type != "Mul":
        return (before,)
    factor = next((name for name in body.nodes[after].input if name != output), "")
    scale = body.producers.get(factor)
    return (before, after) if scale is None else (before, scale, after)


def _expansion(body: Body, places: tuple[int, ...], product: IntegerProduct, around: tuple[int, ...] = ()) -> Expansion:
    node = body.nodes[places[0]]
    shape = shape_of(product.weight.integers)
    columns = (*shape, 0, 0)[1 if product.weight.by_rows else 0]

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        floats = rng.standard_normal((tokens, columns)).astype(np.float32)
        values: Feeds = {}
        for place in (*places, *around):
            for index, name in enumerate(body.nodes[place].input):
                values[name] = np.array(0.02, np.float32) if index else floats
        quants = np.rint(floats * 40)
        quants = quants + 128 if product.dtype == np.uint8 else quants
        lowest = np.iinfo(product.dtype).min
        integers = np.clip(quants, lowest, lowest + 255).astype(product.dtype)
        if node.op_type != "DynamicQuantizeMatMul":
            values[node.input[0]] = integers
        for name in filter(None, (input_at(node, place) for place in _ZEROS.get(node.op_type, ()))):
            values[name] = np.array(128 if product.dtype == np.uint8 else 0, product.dtype)
        return values

    return Expansion(body, places, product.weight.integers, constants_of_node(body, node), product.forms, feeds, around)


_ZEROS = {"MatMulInteger": (2,), "QLinearMatMul": (2,), "QGemm": (2,), "MatMulIntegerToFloat": (4,)}
"""Places of the zero point of the first input."""
