"""A Llama as NVIDIA's parser takes it: stock ONNX operators, one precision, and a cache that the caller owns.

Legend: B batch (slots), S tokens a slot in this step, E hidden size, C cache length, H query heads, G key/value heads,
D head size, R rows of the flattened [B * S] tokens whose logits are wanted, V vocabulary.

Inputs: input_ids [B, S] int64; position_ids [B, S] int64, of a slot consecutive, the first being the number of tokens
that it holds; logit_rows [R] int64; past.<layer>.key and .value [B, G, C, D].
Outputs: logits [R, V] float32; present.<layer>.key and .value, to be bound to the memory of the past.

TensorScatter writes the step's keys and values into the cache, which TensorRT turns into an update in place, and
Attention runs over the whole cache under a mask. (The parser takes no Attention that returns its cache.) B, S and R are
dynamic; C is the model's context. Norms, products and softmax sum in float32; what is stored between operators is of
the graph's precision.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...artifacts import LanguageModelFacts
from ...serve.engine.static_cache import StepLimits, cache_names, past_name, present_name
from ..graph.source import SourceModel
from .build import Shapes
from .ordering import Orders
from .packed import PackedGraph
from .typed_graph import PRECISIONS, Precision, TypedGraph

INT64 = TensorProto.INT64
NO_FORMS: Mapping[str, str] = MappingProxyType({})
"""All layers dense."""
NO_ORDERS: Orders = MappingProxyType({})


def build_static_llama(
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
    graph = PackedGraph(precision, source.masks, forms, orders)
    _declare_step(graph, source)
    embedding = graph.weight("model.embed_tokens.weight", source.weight("model.embed_tokens"))
    hidden = graph.node("Gather", [embedding, "input_ids"], "embedded")
    for layer in range(source.config.num_hidden_layers):
        hidden = _decoder_layer(graph, source, layer, hidden)
    _head(graph, source, hidden, embedding)
    return graph.model("llama_static_cache")


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
    """Inputs, rotary tables, and what all layers share: where to write, and which cache entries a token sees."""
    graph.input("input_ids", ["batch", "sequence"], INT64)
    graph.input("position_ids", ["batch", "sequence"], INT64)
    graph.input("logit_rows", ["rows"], INT64)
    for name, table_CD in zip(("rotary.cos", "rotary.sin"), source.rotary_tables(), strict=True):
        graph.weight(name, table_CD)
    context = source.config.max_position_embeddings
    graph.constant("cache_positions", np.arange(context, dtype=np.int64).reshape(1, 1, 1, context))
    first = graph.constant("first", np.array(0, np.int64))
    graph.node("Gather", ["position_ids", first], "write_indices", axis=1)
    axes = graph.constant("mask_axes", np.array([1, 3], np.int64))
    positions = graph.node("Unsqueeze", ["position_ids", axes], "token_positions")
    graph.node("LessOrEqual", ["cache_positions", positions], "visible")


def _decoder_layer(graph: TypedGraph, source: SourceModel, layer: int, hidden: str) -> str:
    prefix = f"model.layers.{layer}"
    normed = _norm(graph, source, f"{prefix}.input_layernorm", hidden)
    attended = _attention(graph, source, layer, normed)
    update = _projection(graph, source, f"{prefix}.self_attn.o_proj", attended)
    hidden = graph.node("Add", [hidden, update], f"{prefix}.attended")
    normed = _norm(graph, source, f"{prefix}.post_attention_layernorm", hidden)
    return graph.node("Add", [hidden, _mlp(graph, source, f"{prefix}.mlp", normed)], f"{prefix}.output")


def _norm(graph: TypedGraph, source: SourceModel, name: str, hidden: str) -> str:
    scale = graph.weight(f"{name}.weight", source.weight(name))
    return graph.node("RMSNormalization", [hidden, scale], name, axis=-1, epsilon=source.config.rms_norm_eps)


def _attention(graph: TypedGraph, source: SourceModel, layer: int, normed: str) -> str:
    """Projections to heads, rotary embedding, cache update, and attention under the mask."""
    prefix = f"model.layers.{layer}.self_attn"
    queries = _rotated(graph, _heads(graph, source, f"{prefix}.q_proj", normed, source.config.num_attention_heads))
    keys = _rotated(graph, _heads(graph, source, f"{prefix}.k_proj", normed, source.num_kv_heads))
    values = _heads(graph, source, f"{prefix}.v_proj", normed, source.num_kv_heads)
    caches = [_update_cache(graph, source, layer, part, new) for part, new in (("key", keys), ("value", values))]
    scale = source.head_dim**-0.5
    attended = graph.node("Attention", [queries, *caches, "visible"], f"{prefix}.attended", scale=scale)
    by_token = graph.node("Transpose", [attended], f"{prefix}.by_token", perm=[0, 2, 1, 3])
    shape = graph.constant("merged_heads", np.array([0, 0, -1], np.int64))
    return graph.node("Reshape", [by_token, shape], f"{prefix}.merged")


def _heads(graph: TypedGraph, source: SourceModel, name: str, normed: str, heads: int) -> str:
    """A projection as [B, heads, S, D]."""
    shape = graph.constant(f"split_in_{heads}", np.array([0, 0, heads, source.head_dim], np.int64))
    split = graph.node("Reshape", [_projection(graph, source, name, normed), shape], f"{name}.split")
    return graph.node("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])


def _rotated(graph: TypedGraph, heads: str) -> str:
    return graph.node("RotaryEmbedding", [heads, "rotary.cos", "rotary.sin", "position_ids"], f"{heads}.rotated")


def _update_cache(graph: TypedGraph, source: SourceModel, layer: int, part: str, new: str) -> str:
    shape: list[int | str] = ["batch", source.num_kv_heads, source.config.max_position_embeddings, source.head_dim]
    past = graph.input(past_name(f"{layer}.{part}"), shape)
    present = graph.output(present_name(f"{layer}.{part}"), shape)
    return graph.node("TensorScatter", [past, new, "write_indices"], present, axis=-2)


def _mlp(graph: TypedGraph, source: SourceModel, prefix: str, normed: str) -> str:
    gate = _projection(graph, source, f"{prefix}.gate_proj", normed)
    up = _projection(graph, source, f"{prefix}.up_proj", normed)
    activated = graph.node("Swish", [gate], f"{prefix}.gate_activated")
    product = graph.node("Mul", [activated, up], f"{prefix}.product")
    return _projection(graph, source, f"{prefix}.down_proj", product)


def _projection(graph: TypedGraph, source: SourceModel, name: str, x: str) -> str:
    has_bias = source.model.get_submodule(name).bias is not None
    bias_N = source.parameter(f"{name}.bias") if has_bias else None
    return graph.linear(x, name, source.weight(name), bias_N, f"{name}.output")


def _head(graph: TypedGraph, source: SourceModel, hidden: str, embedding: str) -> None:
    """Gather the wanted rows of the residual stream, then the final norm and lm_head."""
    flat = graph.constant("flat_shape", np.array([-1, source.config.hidden_size], np.int64))
    flattened = graph.node("Reshape", [hidden, flat], "head.flat")
    rows = graph.node("Gather", [flattened, "logit_rows"], "head.rows", axis=0)
    normed = _norm(graph, source, "model.norm", rows)
    if source.config.tie_word_embeddings:
        scores = graph.node("Gemm", [normed, embedding], "lm_head.output", transB=1)
    else:
        scores = graph.linear(normed, "lm_head", source.weight("lm_head"), None, "lm_head.output")
    graph.output("logits", ["rows", source.config.vocab_size], TensorProto.FLOAT)
    graph.node("Cast", [scores], "logits", to=TensorProto.FLOAT)
