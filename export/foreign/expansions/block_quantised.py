"""com.microsoft.MatMulNBits: a weight of few bits with a scale for each block of a row, times X in float32.

Legend: N out_features, K in_features, B blocks of a row.
"""

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from ..bodies import Body
from ..document import Document
from ..left_weights import attributes_of, nibbles
from ..weights import load
from .expansion import Context, Emitter, Expansion, Feeds, Form, Matrix, constant_at, constants_of_node, input_at

_ROUNDS_X = 4
"""The accuracy level at which ONNX Runtime rounds X to int8, block by block."""


def matmul_nbits(body: Body, place: int, context: Context) -> Expansion | str:
    """MatMulNBits(A, B, scales, zero points, order of columns, bias), of 4 or 8 bits: (q - z) * scale in float32."""
    del context
    node = body.nodes[place]
    attributes = attributes_of(node)
    weight = constant_at(body, node, 1)
    if weight is None or constant_at(body, node, 2) is None:
        return "its weight is computed"
    if int(attributes.get("accuracy_level", 0)) == _ROUNDS_X:
        return "it rounds its input to int8 in blocks, which no packed form does"
    if input_at(node, 4):
        return "its columns are in an order of their own"
    columns = int(attributes.get("K", 0))

    def forms(document: Document) -> list[Form]:
        def write(emitter: Emitter) -> None:
            emitter.product(0, node.input[0], input_at(node, 5), node.output[0])

        return [Form("the numbers that its integers stand for", (Matrix(_matrix(body, node, document)),), write)]

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        return {node.input[0]: rng.standard_normal((tokens, columns)).astype(np.float32)}

    return Expansion(body, (place,), weight, constants_of_node(body, node), forms, feeds)


def _matrix(body: Body, node: NodeProto, document: Document) -> NDArray[np.float32]:
    """The weight W [N, K]; raises ValueError where its parts do not fit together."""
    attributes = attributes_of(node)
    rows, columns, bits = (int(attributes.get(name, default)) for name, default in (("N", 0), ("K", 0), ("bits", 4)))
    block = int(attributes.get("block_size", 0))
    if bits not in (4, 8) or min(rows, columns, block) < 1:
        raise ValueError(f"weights of {bits} bits in blocks of {block} have no packed form")
    read = partial(_constant, body, node, document)
    packed, scales, zero = read(1), read(2), read(3)
    blocks = math.ceil(columns / block)
    if packed is None or scales is None or scales.dtype != np.float32:
        raise ValueError("its scales are not float32")
    integers_NBb = _unpacked(packed.reshape(rows, blocks, -1), bits)[:, :, :block]
    zeros_NB = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if zero is not None and zero.dtype == np.uint8:
        zeros_NB = _unpacked(zero.reshape(rows, -1), bits)[:, :blocks]
    elif zero is not None:
        zeros_NB = zero.reshape(rows, blocks).astype(np.float32)
    whole_NBb = (integers_NBb - zeros_NB[:, :, None]) * scales.reshape(rows, blocks, 1)
    return np.ascontiguousarray(whole_NBb.reshape(rows, -1)[:, :columns].astype(np.float32))


def _unpacked(array: NDArray, bits: int) -> NDArray[np.float32]:
    return (nibbles(array) if bits == 4 else array).astype(np.float32)


def _constant(body: Body, node: NodeProto, document: Document, place: int) -> NDArray | None:
    found = constant_at(body, node, place)
    if found is None and input_at(node, place):
        raise ValueError("its weight is computed")
    return None if found is None else load(found, document)
