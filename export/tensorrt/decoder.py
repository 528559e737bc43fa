"""A decoder as NVIDIA's parser takes it: stock ONNX operators, one precision, and a cache that the caller owns.

Legend: B batch (slots), S tokens a slot in this step, E hidden size, C cache length, H query heads, G key/value heads,
D head size, R rows of the flattened [B * S] tokens whose logits are wanted, V vocabulary.

Inputs: input_ids [B, S] int64; position_ids [B, S] int64, of a slot consecutive, the first being the number of tokens
that it holds; logit_rows [R] int64; past.<layer>.key and .value [B, G, C, D].
Outputs: logits [R, V] float32; present.<layer>.key and .value, to be bound to the memory of the past.

TensorScatter writes the step's keys and values into the cache, which TensorRT turns into an update in place, and
Attention runs over the whole cache under a mask, which has the sliding window where there is one. (The parser takes no
Attention that returns its cache.) B, S and R are dynamic; C is the model's context. Norms, products and softmax sum in
float32; what is stored between operators is of the graph's precision.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ...architectures import Part
from ...artifacts import LanguageModelFacts, UnsupportedModelError
from ...runtime.static_cache import StepLimits, cache_names, past_name, present_name
from ..graph.emitter import DecoderEmitter, Stream
from ..graph.head import has_bias
from ..graph.source import SourceModel
from .build import Shapes
from .ordering import Orders
from .packed import PackedGraph
from .typed_graph import PRECISIONS, Precision, TypedGraph

INT64 = TensorProto.INT64
NO_FORMS: Mapping[str, str] = MappingProxyType({})
"""All layers dense."""
NO_ANGLE = "unrotated"
NO_ORDERS: Orders = MappingProxyType({})


def build_static_decoder(
    source: SourceModel,
    precision: Precision = PRECISIONS["float16"],
    forms: Mapping[str, str] = NO_FORMS,
    orders: Orders = NO_ORDERS,
) -> onnx.ModelProto:
    """The graph of a model, its weights rounded to `precision`.

    Args:
        source: the model. precision: of everything but logits. forms: by name, the linear layers that are packed nodes
        (see `packed`), and in which form; the others are dense, weights off their masks explicit zeros. orders: by
        name, the layers that gather their inputs first (see `ordering`).
    """
    graph = PackedGraph(precision, source.projection_masks(), forms, orders)
    _declare_step(graph, source)
    _StaticEmitter(source, graph).walk()
    return graph.model(f"{source.model.config.model_type}_static_cache")


def step_profiles(facts: LanguageModelFacts, limits: StepLimits) -> tuple[Shapes, Shapes]:
    """The two kinds of step an engine is tuned for: a chunk of one prompt, and one token for each of several slots."""
    most = min(limits.tokens, facts.context_length)
    prefill = _profile(facts, batch=(1, 1, 1), sequence=(1, most, most), rows=(1, 1, most))
    several = (1, limits.batch, limits.batch)
    decode = _profile(facts, batch=several, sequence=(1, 1, 1), rows=several)
    return prefill, decode


Sizes = tuple[int, int, int]


def _profile(facts: LanguageModelFacts, batch: Sizes, sequence: Sizes, rows: Sizes) -> Shapes:
    """Smallest, usual and largest shape of every input, from those of its dynamic dimensions."""
    step = tuple(zip(batch, sequence, strict=True))
    caches = tuple((size, facts.num_kv_heads, facts.context_length, facts.head_dim) for size in batch)
    shapes: dict[str, Any] = {"input_ids": step, "position_ids": step, "logit_rows": tuple((size,) for size in rows)}
    return shapes | {past_name(cache): caches for cache in cache_names(facts)}


def _declare_step(graph: TypedGraph, source: SourceModel) -> None:
    """Inputs, rotary tables, and what layers share: where to write, and which cache entries a token sees."""
    graph.input("input_ids", ["batch", "sequence"], INT64)
    graph.input("position_ids", ["batch", "sequence"], INT64)
    graph.input("logit_rows", ["rows"], INT64)
    for name, tables in source.rotary_tables().items():
        for part, table in zip(("cos", "sin"), tables, strict=True):
            graph.weight(f"{name}.{part}", table)
    context = source.decoder.context_length
    graph.constant("cache_positions", np.arange(context, dtype=np.int64).reshape(1, 1, 1, context))
    first = graph.constant("first", np.array(0, np.int64))
    graph.node("Gather", ["position_ids", first], "write_indices", axis=1)
    axes = graph.constant("mask_axes", np.array([1, 3], np.int64))
    positions = graph.node("Unsqueeze", ["position_ids", axes], "token_positions")
    graph.node("LessOrEqual", ["cache_positions", positions], "visible")
    for window in sorted({kind.window for kind in source.decoder.layers if kind.window}):
        width = graph.constant(f"window_{window}", np.array(window, np.int64))
        left = graph.node("Sub", ["token_positions", width], f"left_of_{window}")
        near = graph.node("Greater", ["cache_positions", left], f"within_{window}")
        graph.node("And", ["visible", near], f"visible_{window}")


class _StaticEmitter(DecoderEmitter):
    """Writes to a `TypedGraph`."""

    def __init__(self, source: SourceModel, graph: TypedGraph) -> None:
        super().__init__(source, leading=2)
        self._graph = graph

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """See `DecoderEmitter.node`."""
        return self._graph.node(op_type, inputs, output, **attributes)

    def number(self, name: str, value: NDArray | Callable[[], NDArray]) -> str:
        """See `DecoderEmitter.number`."""
        return self._graph.weight(name, value() if callable(value) else value)

    def constant(self, name: str, value: NDArray) -> str:
        """See `DecoderEmitter.constant`."""
        return self._graph.constant(name, value)

    def projection(self, name: str, x: str) -> str:
        """See `DecoderEmitter.projection`."""
        return self._graph.linear(x, name, self.source.weight(name), self.source.bias(name), f"{name}.output")

    def mixture(self, path: str, x: str) -> str:
        """See `DecoderEmitter.mixture`: which rows an expert multiplies is not known when an engine is built."""
        raise UnsupportedModelError(
            f"{path}: experts are not supported by --target tensorrt and tensorrt-rtx; export with --target onnx"
        )

    def positions(self) -> str:
        """See `DecoderEmitter.positions`."""
        return "position_ids"

    def activated(self, x: str, output: str) -> str:
        """See `DecoderEmitter.activated`."""
        if self.decoder.mlp.activation == "silu":
            return self.node("Swish", [x], output)
        return super().activated(x, output)

    def gated(self, parts: Sequence[Part], x: str, output: str) -> str:
        """See `DecoderEmitter.gated`."""
        gate, up = (self.projection(part.name, x) for part in parts)
        return self.node("Mul", [self.activated(gate, f"{output}.gate"), up], output)

    def attend(self, layer: int, x: str) -> str:
        """Projections to heads, rotary embedding, cache update, and attention under the mask."""
        attention, kind, path = self.decoder.attention, self.decoder.layers[layer], self.decoder.layer(layer)
        queries, keys, values = self.separate_heads(layer, x)
        turned = [
            self._turned(self._heads(queries, attention.heads), kind.rotary or self._no_angle()),
            self._turned(self._heads(keys, attention.kv_heads), kind.rotary),
        ]
        parts = (("key", turned[1]), ("value", self._heads(values, attention.kv_heads)))
        caches = [self._update_cache(layer, part, new) for part, new in parts]
        visible, scale = f"visible_{kind.window}" if kind.window else "visible", self.decoder.scale(layer)
        if attention.softcap:
            attended = self._capped(path, turned[0], caches, visible, scale)
        else:
            attended = self.node("Attention", [turned[0], *caches, visible], f"{path}.attended", scale=scale)
        by_token = self.node("Transpose", [attended], f"{path}.by_token", perm=[0, 2, 1, 3])
        return self.node("Reshape", [by_token, self.integers("merge_heads", 0, 0, -1)], f"{path}.merged")

    def finish(self, stream: Stream) -> None:
        """Gather the wanted rows of the stream, then the final norm and lm_head, which ends in float32."""
        decoder, graph = self.decoder, self._graph
        hidden = self.total(stream, "head.sum").hidden
        flat = self.node("Reshape", [hidden, self.integers("flat_shape", -1, decoder.hidden_size)], "head.flat")
        normed = self.node("Gather", [flat, "logit_rows"], "head.rows", axis=0)
        if decoder.final_norm:
            normed = self.norm(normed, decoder.final_norm, decoder.norm, decoder.hidden_size, decoder.final_norm)
        graph.output("logits", ["rows", decoder.vocab_size], TensorProto.FLOAT)
        if self.source.head_is_tied:
            embedding = self.number(f"{decoder.embedding}.weight", self.source.weight(decoder.embedding))
            scores = self.node("Gemm", [normed, embedding], f"{decoder.head}.output", transB=1)
        else:
            weight = self.source.weight(decoder.head)
            scores = graph.linear(normed, decoder.head, weight, None, f"{decoder.head}.output")
        self.finish_logits(
            lambda output: self.node("Cast", [scores], output, to=TensorProto.FLOAT), bias=has_bias(self.source)
        )

    def _capped(self, path: str, queries: str, caches: Sequence[str], visible: str, scale: float) -> str:
        """Attention whose scores have a soft cap, which the parser's Attention does not have; scores in float32."""
        attention, size = self.decoder.attention, self.source.head_dim
        single = self.integers("readers_axis", 2)
        shape = self.integers("by_group", 0, attention.kv_heads, attention.readers, -1, size)
        grouped = self.node("Reshape", [queries, shape], f"{path}.grouped")
        keys, values = (self.node("Unsqueeze", [cache, single], f"{cache}.shared") for cache in caches)
        turned = self.node("Transpose", [keys], f"{path}.keys", perm=[0, 1, 2, 4, 3])
        product = self.node("MatMul", [grouped, turned], f"{path}.product_of_keys")
        scores = self.node("Cast", [product], f"{path}.scores", to=TensorProto.FLOAT)
        inverse = self.constant(f"scale_over_cap.{scale}", np.array(scale / attention.softcap, np.float32))
        small = self.node("Tanh", [self.node("Mul", [scores, inverse], f"{path}.small")], f"{path}.tanh")
        capped = self.node("Mul", [small, self.scalar("softcap", attention.softcap)], f"{path}.capped")
        seen = self.node("Unsqueeze", [visible, self.integers("groups_axis", 1)], f"{path}.seen")
        hidden = self.scalar("hidden_score", float(np.finfo(np.float32).min))
        masked = self.node("Where", [seen, capped, hidden], f"{path}.masked")
        weights = self.node("Softmax", [masked], f"{path}.softmax", axis=-1)
        typed = self.node("CastLike", [weights, queries], f"{path}.weights")
        mixed = self.node("MatMul", [typed, values], f"{path}.mixed")
        heads = self.integers("by_head", 0, attention.heads, -1, size)
        return self.node("Reshape", [mixed, heads], f"{path}.attended")

    def _heads(self, x: str, heads: int) -> str:
        """[B, S, heads * D] as [B, heads, S, D]."""
        split = self.split_heads(x, heads, self.source.head_dim)
        return self.node("Transpose", [split], f"{x}.by_head", perm=[0, 2, 1, 3])

    def _no_angle(self) -> str:
        """A table of rotations by no angle, for queries that are not rotated.

        A builder multiplies the root of the attention's scale into the weight that the queries come from, and rounds it
        so, if nothing lies between the two. A rotation by no angle changes no bit.
        """
        shape = self.decoder.context_length, self.source.head_dim // 2
        self.number(f"{NO_ANGLE}.cos", np.ones(shape, np.float32))
        self.number(f"{NO_ANGLE}.sin", np.zeros(shape, np.float32))
        return NO_ANGLE

    def _turned(self, heads: str, table: str) -> str:
        """Heads after the rotary embedding of a table; "" for none."""
        if not table:
            return heads
        rotary, size = self.decoder.rotary, self.source.head_dim
        turned = size if rotary is None or table == NO_ANGLE else rotary.size
        partial = {} if turned == size else {"rotary_embedding_dim": turned}
        inputs = [heads, f"{table}.cos", f"{table}.sin", "position_ids"]
        return self.node("RotaryEmbedding", inputs, f"{heads}.turned", **partial)

    def _update_cache(self, layer: int, part: str, new: str) -> str:
        facts = self.source.facts()
        shape: list[int | str] = ["batch", facts.num_kv_heads, facts.context_length, facts.head_dim]
        past = self._graph.input(past_name(f"{layer}.{part}"), shape)
        present = self._graph.output(present_name(f"{layer}.{part}"), shape)
        return self._graph.node("TensorScatter", [past, new, "write_indices"], present, axis=-2)
