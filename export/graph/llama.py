"""A Llama as one ONNX graph for prefill and decode, with a KV cache that is updated in place.

Legend: R rows of the flattened tokens of a step whose logits are wanted, E hidden size, V vocabulary; see `attention`
for the rest.

Inputs are those of the attention's form (see `attention`) and logit_rows [R] int64, indices into the flattened tokens.
Outputs are logits [R, V] float32, and the caches. The wanted rows are gathered before the final norm and lm_head.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from ..layouts import DOMAIN
from .attention import AttentionForm
from .builder import MICROSOFT, GraphBuilder, LinearLayer
from .head import HeadForm, add_head
from .source import SourceModel
from .weights import WeightFile


def build_llama(
    source: SourceModel, weights: WeightFile, attention: AttentionForm, lm_head: HeadForm = "packed"
) -> onnx.ModelProto:
    """The ONNX model, with its initializers in `weights`, whose `choices` say which layout each projection got.

    Args:
        source: the model.
        weights: may hold the tensors of other graphs of this model; see `add_head` on their forms of lm_head.
        attention: the form of attention, and with it of the inputs.
        lm_head: the form of lm_head.
    """
    builder = GraphBuilder(weights)
    attention.declare_inputs(builder)
    builder.input("logit_rows", TensorProto.INT64, ["rows"])
    cos, sin = source.rotary_tables()
    builder.initializer("rotary.cos", cos)
    builder.initializer("rotary.sin", sin)
    embedding = builder.initializer("model.embed_tokens.weight", source.weight("model.embed_tokens"))
    hidden = builder.node("Gather", [embedding, "input_ids"], "embedded")
    update: str | None = None
    for layer in range(source.config.num_hidden_layers):
        hidden, update = _decoder_layer(builder, source, attention, layer, hidden, update)
    assert update is not None
    normed = _wanted_rows(builder, source, attention, hidden, update)
    builder.output("logits", TensorProto.FLOAT, ["rows", source.config.vocab_size])
    add_head(builder, source, lm_head, attention.portable, normed)
    return builder.model("llama", portable=attention.portable)


def _decoder_layer(
    builder: GraphBuilder, source: SourceModel, attention: AttentionForm, layer: int, hidden: str, update: str | None
) -> tuple[str, str]:
    """One layer. The residual stream is carried as (hidden, update): the sum is fused into the next norm."""
    prefix = f"model.layers.{layer}"
    portable = attention.portable
    hidden, normed = _norm(builder, source, f"{prefix}.input_layernorm", hidden, update, portable)
    qkv = _qkv(builder, source, f"{prefix}.self_attn", normed)
    attended = attention.attend(builder, source, layer, qkv, f"{prefix}.self_attn.attended")
    update = _projection(builder, source, f"{prefix}.self_attn.o_proj", attended)
    hidden, normed = _norm(builder, source, f"{prefix}.post_attention_layernorm", hidden, update, portable)
    return hidden, _mlp(builder, source, f"{prefix}.mlp", normed)


def _norm(
    builder: GraphBuilder, source: SourceModel, name: str, hidden: str, update: str | None, portable: bool
) -> tuple[str, str]:
    """RMSNorm of hidden + update; returns that sum and the normed value."""
    scale = builder.initializer(f"{name}.weight", source.weight(name))
    epsilon = source.config.rms_norm_eps
    if update is None:
        return hidden, builder.node("RMSNormalization", [hidden, scale], name, axis=-1, epsilon=epsilon)
    inputs, total = [hidden, update, scale], f"{name}.sum"
    if portable:
        outputs = [name, "", "", total]
        return total, builder.node("SkipSimplifiedLayerNormalization", inputs, outputs, MICROSOFT, epsilon=epsilon)
    return total, builder.node("ResidualNorm", inputs, [name, total], DOMAIN, epsilon=epsilon)


def _qkv(builder: GraphBuilder, source: SourceModel, prefix: str, normed: str) -> Sequence[str]:
    """Queries, keys and values: side by side from one op, or each from its own."""
    layers = [_layer(source, f"{prefix}.{part}_proj") for part in "qkv"]
    packed = builder.fused("qkv", normed, layers, f"{prefix}.qkv")
    return [packed] if packed else [builder.linear(normed, layer, f"{layer.name}.output") for layer in layers]


def _mlp(builder: GraphBuilder, source: SourceModel, prefix: str, normed: str) -> str:
    gate, up = (_layer(source, f"{prefix}.{part}_proj") for part in ("gate", "up"))
    product = builder.fused("gated", normed, [gate, up], f"{prefix}.product")
    if product is None:
        gated, lifted = (builder.linear(normed, layer, f"{layer.name}.output") for layer in (gate, up))
        # ONNX Runtime fuses Sigmoid and Mul into one SiLU.
        sigmoid = builder.node("Sigmoid", [gated], f"{prefix}.gate_sigmoid")
        activated = builder.node("Mul", [gated, sigmoid], f"{prefix}.gate_activated")
        product = builder.node("Mul", [activated, lifted], f"{prefix}.product")
    return _projection(builder, source, f"{prefix}.down_proj", product)


def _wanted_rows(builder: GraphBuilder, source: SourceModel, attention: AttentionForm, hidden: str, update: str) -> str:
    """Gather the wanted rows of the residual stream, then the final norm."""
    rows = []
    for part, name in (("hidden", hidden), ("update", update)):
        if not attention.flat:
            shape = builder.initializer("flat_shape", np.array([-1, source.config.hidden_size], np.int64))
            name = builder.node("Reshape", [name, shape], f"head.{part}.flat")
        rows.append(builder.node("Gather", [name, "logit_rows"], f"head.{part}.rows", axis=0))
    _, normed = _norm(builder, source, "model.norm", rows[0], rows[1], attention.portable)
    return normed


def _projection(builder: GraphBuilder, source: SourceModel, name: str, x: str) -> str:
    return builder.linear(x, _layer(source, name), f"{name}.output")


def _layer(source: SourceModel, name: str) -> LinearLayer:
    has_bias = source.model.get_submodule(name).bias is not None
    bias_N = source.parameter(f"{name}.bias") if has_bias else None
    return LinearLayer(name, source.weight(name), source.masks[name], bias_N)
