"""MatMul with a batch of constant matrices, as one product by a matrix that has them along its diagonal.

Legend: G matrices, N out_features and K in_features of each, T tokens.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ..bodies import Body
from ..document import Document
from ..linears import shape_of
from ..weights import load
from .expansion import Context, Emitter, Expansion, Feeds, Form, Matrix, constant_at, constants_of_node

MOST_ELEMENTS = 1 << 24
"""Of the matrix with the others along its diagonal, which is made whole once."""


def batched_matmul(body: Body, place: int, context: Context) -> Expansion | str | None:
    """MatMul(X [..., G, T, K], W [G, K, N]); or of X [T, K], which meets each matrix. None: no batch of matrices."""
    node = body.nodes[place]
    weight = constant_at(body, node, 1)
    shape = () if weight is None else shape_of(weight)
    if weight is None or len(shape) < 3 or any(size != 1 for size in shape[:-3]):
        return None
    count, columns, rows = shape[-3:]
    given = context.types.shape(body, node.input[0])
    if given is None or (len(given) != 2 and len(given) < len(shape)):
        return "the weight is a batch of matrices, for an input of an unknown number of dimensions"
    alike = len(given) == 2 and len(shape) == 3
    if count < 2 or not (alike or (len(given) > 2 and given[-3] == count)):
        return "the weight is a batch of matrices, and the input none of as many"
    if (1 if alike else count) * math.prod(shape) > MOST_ELEMENTS:
        return f"the weight is a batch of {count} matrices, which is too many"
    rank = len(given)
    if math.prod(size or 1 for size in given[:-2]) * columns > MOST_ELEMENTS:
        return "its input is too large to be timed"
    swap = [*range(rank - 3), rank - 2, rank - 3, rank - 1]

    def forms(document: Document) -> list[Form]:
        array = load(weight, document)
        if array.dtype != np.float32:
            raise ValueError(f"its weight is {array.dtype}")
        matrices_GNK = array.reshape(count, columns, rows).swapaxes(1, 2)
        if alike:
            return [Form("its matrices on one another", (Matrix(matrices_GNK.reshape(-1, columns)),), write_alike)]
        return [Form("its matrices along a diagonal", (Matrix(diagonal(matrices_GNK)),), write)]

    def write_alike(emitter: Emitter) -> None:
        parted = emitter.constant(f"{node.output[0]}.shape", np.array([0, count, rows], np.int64))
        (product,) = emitter.node("Reshape", [emitter.product(0, node.input[0]), parted])
        emitter.node("Transpose", [product], [node.output[0]], perm=[1, 0, 2])

    def write(emitter: Emitter) -> None:
        flat = emitter.constant(f"{node.output[0]}.flat", np.array([*[0] * (rank - 2), count * columns], np.int64))
        parted = emitter.constant(f"{node.output[0]}.shape", np.array([*[0] * (rank - 2), count, rows], np.int64))
        (x,) = emitter.node("Transpose", [node.input[0]], perm=swap)
        (x,) = emitter.node("Reshape", [x, flat])
        (product,) = emitter.node("Reshape", [emitter.product(0, x), parted])
        emitter.node("Transpose", [product], [node.output[0]], perm=swap)

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        lead = () if alike else (*(size or 1 for size in given[:-3]), count)
        return {node.input[0]: rng.standard_normal((*lead, tokens, columns)).astype(np.float32)}

    return Expansion(body, (place,), weight, constants_of_node(body, node), forms, feeds, shape=shape)


def diagonal(matrices_GNK: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix [G N, G K] with the given ones along its diagonal, and zeros elsewhere."""
    count, rows, columns = matrices_GNK.shape
    whole = np.zeros((count, rows, count, columns), np.float32)
    for index, matrix_NK in enumerate(matrices_GNK):
        whole[index, :, index] = matrix_NK
    return whole.reshape(count * rows, count * columns)
