"""A Llama as one ONNX graph for prefill and decode, with a static KV cache that is updated in place.

Legend: B batch (slots), S tokens a slot in this step, E hidden size, C context (cache length), H query heads, G
key/value heads, D head size, R rows of the flattened [B * S] tokens whose logits are wanted, V vocabulary.

Inputs:
    input_ids [B, S] int64; seqlens_k [B] int32, the number of valid cache entries after this step minus 1;
    total_sequence_length [] int32, the largest such number over the batch, without the minus 1; logit_rows [R] int64;
    past_key_values.<layer>.key and .value [B, G, C, D] float32.
Outputs: logits [R, V] float32; present.<layer>.key and .value, to be bound to the buffers of the past.

The attention is ONNX Runtime's GroupQueryAttention, the only stock form whose cost follows the real length. B > 1 with
S > 1 is allowed at an empty past only: prefill slot by slot, then decode slots together. The wanted rows are gathered
before the final norm and lm_head. C is a symbolic dimension: a runner may bind any cache up to the rotary table's
length.
"""

import numpy as np
import onnx
from onnx import TensorProto

from .builder import MICROSOFT, GraphBuilder
from .source import SourceModel

FLOAT = TensorProto.FLOAT


def build_llama(source: SourceModel) -> tuple[onnx.ModelProto, GraphBuilder]:
    """The ONNX model, and its builder, whose `choices` say which layout each projection got."""
    builder = GraphBuilder()
    _declare_step_inputs(builder)
    cos, sin = source.rotary_tables()
    builder.initializer("rotary.cos", cos)
    builder.initializer("rotary.sin", sin)
    embedding = builder.initializer("model.embed_tokens.weight", source.weight("model.embed_tokens"))
    hidden = builder.node("Gather", [embedding, "input_ids"], "embedded")
    update: str | None = None
    for layer in range(source.config.num_hidden_layers):
        hidden, update = _decoder_layer(builder, source, layer, hidden, update)
    assert update is not None
    _head(builder, source, hidden, update)
    return builder.model("llama"), builder


def _declare_step_inputs(builder: GraphBuilder) -> None:
    builder.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
    builder.input("seqlens_k", TensorProto.INT32, ["batch"])
    builder.input("total_sequence_length", TensorProto.INT32, [])
    builder.input("logit_rows", TensorProto.INT64, ["rows"])


def _decoder_layer(
    builder: GraphBuilder, source: SourceModel, layer: int, hidden: str, update: str | None
) -> tuple[str, str]:
    """One layer. The residual stream is carried as (hidden, update): the sum is fused into the next norm."""
    prefix = f"model.layers.{layer}"
    hidden, normed = _norm(builder, source, f"{prefix}.input_layernorm", hidden, update)
    attended = _attention(builder, source, layer, normed)
    update = _projection(builder, source, f"{prefix}.self_attn.o_proj", attended)
    hidden, normed = _norm(builder, source, f"{prefix}.post_attention_layernorm", hidden, update)
    return hidden, _mlp(builder, source, f"{prefix}.mlp", normed)


def _norm(builder: GraphBuilder, source: SourceModel, name: str, hidden: str, update: str | None) -> tuple[str, str]:
    """RMSNorm of hidden + update; returns that sum and the normed value."""
    scale = builder.initializer(f"{name}.weight", source.weight(name))
    epsilon = source.config.rms_norm_eps
    if update is None:
        return hidden, builder.node("RMSNormalization", [hidden, scale], name, axis=-1, epsilon=epsilon)
    outputs = [name, "", "", f"{name}.sum"]
    normed = builder.node(
        "SkipSimplifiedLayerNormalization", [hidden, update, scale], outputs, MICROSOFT, epsilon=epsilon
    )
    return f"{name}.sum", normed


def _attention(builder: GraphBuilder, source: SourceModel, layer: int, normed: str) -> str:
    """Rotary embedding, cache write and causal attention over the real length, in one stock op."""
    config, prefix = source.config, f"model.layers.{layer}.self_attn"
    queries, keys, values = (_projection(builder, source, f"{prefix}.{part}_proj", normed) for part in "qkv")
    cache_shape: list[int | str] = ["batch", source.num_kv_heads, "context", source.head_dim]
    past = [builder.input(f"past_key_values.{layer}.{part}", FLOAT, cache_shape) for part in ("key", "value")]
    present = [builder.output(f"present.{layer}.{part}", FLOAT, cache_shape) for part in ("key", "value")]
    return builder.node(
        "GroupQueryAttention",
        [queries, keys, values, *past, "seqlens_k", "total_sequence_length", "rotary.cos", "rotary.sin"],
        [f"{prefix}.attended", *present],
        MICROSOFT,
        num_heads=config.num_attention_heads,
        kv_num_heads=source.num_kv_heads,
        scale=source.head_dim**-0.5,
        do_rotary=1,
    )


def _mlp(builder: GraphBuilder, source: SourceModel, prefix: str, normed: str) -> str:
    gate = _projection(builder, source, f"{prefix}.gate_proj", normed)
    up = _projection(builder, source, f"{prefix}.up_proj", normed)
    # ONNX Runtime fuses Sigmoid and Mul into one SiLU.
    sigmoid = builder.node("Sigmoid", [gate], f"{prefix}.gate_sigmoid")
    activated = builder.node("Mul", [gate, sigmoid], f"{prefix}.gate_activated")
    product = builder.node("Mul", [activated, up], f"{prefix}.product")
    return _projection(builder, source, f"{prefix}.down_proj", product)


def _head(builder: GraphBuilder, source: SourceModel, hidden: str, update: str) -> None:
    """Gather the wanted rows of the residual stream, then the final norm and lm_head."""
    flat = builder.initializer("flat_shape", np.array([-1, source.config.hidden_size], np.int64))
    rows = []
    for part, name in (("hidden", hidden), ("update", update)):
        flattened = builder.node("Reshape", [name, flat], f"head.{part}.flat")
        rows.append(builder.node("Gather", [flattened, "logit_rows"], f"head.{part}.rows", axis=0))
    _, normed = _norm(builder, source, "model.norm", rows[0], rows[1])
    builder.output("logits", FLOAT, ["rows", source.config.vocab_size])
    if source.config.tie_word_embeddings:
        builder.node("Gemm", [normed, "model.embed_tokens.weight"], "logits", transB=1)
    else:
        builder.linear(normed, "lm_head", source.weight("lm_head"), source.masks["lm_head"], None, "logits")


def _projection(builder: GraphBuilder, source: SourceModel, name: str, x: str) -> str:
    layer = source.model.get_submodule(name)
    bias_N = source.parameter(f"{name}.bias") if layer.bias is not None else None
    return builder.linear(x, name, source.weight(name), source.masks[name], bias_N, f"{name}.output")
