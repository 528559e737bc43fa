"""The lm_head of an exported decoder, exact or with an int8 pass before it.

Legend: R rows whose logits are wanted, V vocabulary, E hidden size.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..layouts import DOMAIN
from ..layouts.choose import FLOAT32_BYTES, Choice
from .builder import GraphBuilder, LinearLayer
from .source import SourceModel

HeadForm = Literal["packed", "dense", "int8"]
SHORTLIST = 64
"""Logits of a row that are computed again in float32. Of trained models, the best was among the first 16 every time."""
_LARGEST = 127
_BLOCK_WEIGHTS = 1 << 22
"""Weights that are rounded at a time: what lies between them and the integers takes several times their memory."""


def add_head(
    builder: GraphBuilder, source: SourceModel, form: HeadForm, portable: bool, normed: str, output: str
) -> None:
    """The node `output` [R, V] from the normed hidden states [R, E], without the bias that lm_head may have.

    "packed": the exact product, with a weight of its own packed like that of any projection; as "dense" where the
    weight is the embedding, or has no zeros to leave out. "dense": the exact product with float32 weights [V, E], which
    the op `DenseHead` reads as they lie; a portable graph has a Gemm, of whose weights ONNX Runtime makes a copy.
    "int8", never portable: the op `ShortlistHead`, which reads int8 weights with a scale a row, and computes the
    `SHORTLIST` highest logits of a row again from the weights of "dense": the largest is exact. The others are off by
    less than a hundredth of it on average and by a tenth at worst (SmolLM2-135M). Graphs over one weight file may mix
    the last two.
    """
    name = source.decoder.head
    if form == "packed" and not source.head_is_tied:
        # Its bias is added where the logits are finished.
        layer = replace(LinearLayer.of(source, name), bias_N=None)
        if builder.layout(layer) is not None:
            builder.linear(normed, layer, output)
            return
    weight = _dense_weight(builder, source)
    if portable:
        builder.node("Gemm", [normed, weight], output, transB=1)
        return
    if form != "int8":
        builder.node("DenseHead", [normed, weight], output, DOMAIN)
        return
    int8_VE, scales_V = quantise_rows(source.parameter(f"{name}.weight"))
    inputs = [normed, builder.initializer("lm_head.int8", int8_VE), builder.initializer("lm_head.scales", scales_V)]
    builder.node("ShortlistHead", [*inputs, weight], output, DOMAIN, shortlist=SHORTLIST)


def has_bias(source: SourceModel) -> bool:
    """Whether lm_head has a bias."""
    return source.model.get_submodule(source.decoder.head).bias is not None


def _dense_weight(builder: GraphBuilder, source: SourceModel) -> str:
    """The initializer [V, E]: the embedding where the two are tied."""
    head, embedding = source.decoder.head, f"{source.decoder.embedding}.weight"
    if source.head_is_tied:
        return builder.initializer(embedding, lambda: source.parameter(embedding))
    rows, columns = source.shape(head)
    size = rows * columns * FLOAT32_BYTES
    builder.choose(head, Choice(None, size, size, "left dense: lm_head in int8 computes its best logits from it"))
    return builder.initializer(f"{head}.weight", lambda: source.weight(head))


def quantise_rows(weight_VE: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers [V, E], and scales [V]: a row's largest magnitude / 127. Their products are about the weight."""
    quants_VE, scales_V = np.empty(weight_VE.shape, np.int8), np.empty(len(weight_VE), np.float32)
    rows = max(1, _BLOCK_WEIGHTS // max(1, weight_VE.shape[1]))
    for first in range(0, len(weight_VE), rows):
        block = slice(first, first + rows)
        quants_VE[block], scales_V[block] = _quantise_block(weight_VE[block])
    return quants_VE, scales_V


def _quantise_block(weight_RE: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    largest_R = np.maximum(np.abs(weight_RE).max(axis=1), np.finfo(np.float32).tiny)
    quants_RE = np.rint(weight_RE * (_LARGEST / largest_R)[:, None])
    return np.clip(quants_RE, -_LARGEST, _LARGEST), (largest_R / _LARGEST).astype(np.float32)
