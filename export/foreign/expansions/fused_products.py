"""Products that ONNX Runtime has fused with what surrounds them: com.microsoft.FusedMatMul, FusedGemm and Attention.

Legend: N out_features, K in_features, T tokens, H features of queries, keys and values.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bodies import Body
from ..document import Document
from ..left_weights import attributes_of
from ..linears import shape_of
from ..weights import load
from .expansion import Context, Emitter, Expansion, Feeds, Form, Matrix, constant_at, constants_of_node, input_at

_MICROSOFT = "com.microsoft"
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softsign", "Softplus"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}
"""Activations of FusedGemm, and the attributes that each takes from it."""


def fused_matmul(body: Body, place: int, context: Context) -> Expansion | str:
    """FusedMatMul(A, B): alpha * A B, each transposed or not."""
    node = body.nodes[place]
    attributes = attributes_of(node)
    weight = constant_at(body, node, 1)
    if weight is None or len(shape_of(weight)) != 2:
        return "its weight is not a matrix on the right"
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return "it transposes batches"
    rank = context.types.rank(body, node.input[0])
    swaps = bool(attributes.get("transA", 0))
    if swaps and (rank is None or rank < 2):
        return "it transposes an input whose number of dimensions is unknown"
    perm = None if not swaps or rank is None else [*range(rank - 2), rank - 1, rank - 2]

    def finish(emitter: Emitter, product: str) -> None:
        _scaled(emitter, product, float(attributes.get("alpha", 1.0)), node.output[0])

    return _product(body, place, bool(attributes.get("transB", 0)), perm, "", finish)


def fused_gemm(body: Body, place: int, context: Context) -> Expansion | str:
    """FusedGemm(A, B, C): an activation of alpha * A B + beta * C."""
    del context
    node = body.nodes[place]
    attributes = attributes_of(node)
    kind = attributes.get("activation", b"").decode()
    if kind not in _ACTIVATIONS or constant_at(body, node, 1) is None:
        return f"its activation {kind!r} is unknown" if kind not in _ACTIVATIONS else "its weight is computed"
    alpha, beta, addend = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0)), input_at(node, 2)
    named: dict[str, Any] = {
        name: float(attributes[f"activation_{name}"])
        for name in _ACTIVATIONS[kind]
        if f"activation_{name}" in attributes
    }

    def finish(emitter: Emitter, product: str) -> None:
        value = product if alpha == 1 else _scaled(emitter, product, alpha)
        if addend and beta:
            (value,) = emitter.node("Add", [value, addend if beta == 1 else _scaled(emitter, addend, beta)])
        emitter.node(kind, [value], [node.output[0]], **named)

    perm = [1, 0] if attributes.get("transA", 0) else None
    return _product(body, place, bool(attributes.get("transB", 0)), perm, "", finish)


def attention(body: Body, place: int, context: Context) -> Expansion | str:
    """Attention(X, weights [K, 3 H], bias, mask) as a product, its three parts, and MultiHeadAttention."""
    node = body.nodes[place]
    attributes = attributes_of(node)
    weight, bias = constant_at(body, node, 1), input_at(node, 2)
    if weight is None or len(shape_of(weight)) != 2 or (bias and constant_at(body, node, 2) is None):
        return "its weight is not a constant matrix"
    mask = input_at(node, 3)
    rank = context.types.rank(body, mask) if mask else None
    if mask and rank != 2:
        return "its mask is not one of [batch, tokens]"
    if any(input_at(node, index) for index in range(4, 7)) or len([name for name in node.output if name]) > 1:
        return "it has keys and values of the past, or a bias of its scores"
    if attributes.get("do_rotary", 0):
        return "it turns queries and keys"
    columns, rows = shape_of(weight)
    sizes = [int(size) for size in attributes.get("qkv_hidden_sizes", [rows // 3] * 3)]
    if len(sizes) != 3 or sum(sizes) != rows:
        return f"its weight of {rows} columns is not one of queries, keys and values"
    kept = {name: attributes[name] for name in _MHA if name in attributes}

    def finish(emitter: Emitter, product: str) -> None:
        parts = emitter.constant(f"{product}.sizes", np.array(sizes, np.int64))
        queries, keys, values = emitter.node("Split", [product, parts], 3, axis=2)
        inputs = [queries, keys, values, *(["", mask] if mask else [])]
        emitter.node("MultiHeadAttention", inputs, [node.output[0]], _MICROSOFT, **kept)

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        x = rng.standard_normal((1, tokens, columns)).astype(np.float32)
        return {node.input[0]: x} | ({mask: np.ones((1, tokens), np.int32)} if mask else {})

    return _product(body, place, False, None, bias, finish, feeds)


_MHA = ("num_heads", "unidirectional", "mask_filter_value", "scale")
"""Attributes that MultiHeadAttention has in common with Attention."""


def _product(
    body: Body,
    place: int,
    by_rows: bool,
    perm: list[int] | None,
    bias: str,
    finish: Callable[[Emitter, str], None],
    feeds: Callable[[int, np.random.Generator], Feeds] | None = None,
) -> Expansion | str:
    """An expansion whose product's left side is the operator's first input, permuted by `perm`."""
    node = body.nodes[place]
    weight = constant_at(body, node, 1)
    assert weight is not None, "the caller has looked"
    columns = (*shape_of(weight), 0, 0)[1 if by_rows else 0]

    def forms(document: Document) -> list[Form]:
        def write(emitter: Emitter) -> None:
            (x,) = [node.input[0]] if perm is None else emitter.node("Transpose", [node.input[0]], perm=perm)
            finish(emitter, emitter.product(0, x, bias))

        return [Form("written out", (Matrix(float_matrix(load(weight, document), by_rows)),), write)]

    def flat(tokens: int, rng: np.random.Generator) -> Feeds:
        x = rng.standard_normal((tokens, columns)).astype(np.float32)
        lead = (1,) * (0 if perm is None else len(perm) - 2)
        others: Feeds = {name: np.zeros((), np.float32) for name in node.input[2:] if name}
        return others | {node.input[0]: x if perm is None else x.T.reshape(*lead, columns, tokens)}

    return Expansion(body, (place,), weight, constants_of_node(body, node)[:1], forms, feeds or flat)


def float_matrix(array: NDArray, by_rows: bool) -> NDArray[np.float32]:
    """W [N, K] of a stored matrix; raises ValueError where that is none of float32."""
    if array.ndim != 2 or array.dtype != np.float32:
        raise ValueError(f"its weight is {array.dtype} of {array.ndim} dimensions, not a matrix of float32")
    return np.ascontiguousarray(array if by_rows else array.T)


def _scaled(emitter: Emitter, value: str, factor: float, output: str = "") -> str:
    scale = emitter.constant(f"{value}.factor", np.array(factor, np.float32))
    return emitter.node("Mul", [value, scale], [output] if output else 1)[0]
