"""Falcon (arXiv 2311.16867): queries, keys and values in one layer by groups; parallel blocks under one norm or two, or
blocks in sequence."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Norms
from .fields import attention, decoder, layer_norm, mlp, refuse, rotary


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.alibi:
        raise refuse(config, "alibi", "ALiBi is not supported")
    new = config.new_decoder_architecture
    attention_norms, mlp_norms = _norms(config)
    return decoder(
        config,
        "Falcon",
        attention=attention(
            config,
            kv_heads=_kv_heads(config),
            inputs=("self_attention.query_key_value",),
            output="self_attention.dense",
            fused="groups",
        ),
        mlp=mlp(
            config,
            "activation",
            width=config.ffn_hidden_size,
            inputs=("mlp.dense_h_to_4h",),
            output="mlp.dense_4h_to_h",
            gated=False,
        ),
        norm=layer_norm(config, "layer_norm_epsilon"),
        attention_norms=attention_norms,
        mlp_norms=mlp_norms,
        parallel=new or config.parallel_attn,
        rotary=rotary(config, "transformer.rotary_emb"),
        path="transformer.h",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        names=ConfigNames(width="ffn_hidden_size", kv_heads="", head_size=""),
    )


def _kv_heads(config: PretrainedConfig) -> int:
    if config.new_decoder_architecture:
        return config.num_kv_heads
    return 1 if config.multi_query else config.num_attention_heads


def _norms(config: PretrainedConfig) -> tuple[Norms, Norms]:
    """Those of attention and of the MLP."""
    norms = config.num_ln_in_parallel_attn
    if config.new_decoder_architecture and norms in (None, 2):
        return Norms(before="ln_attn"), Norms(before="ln_mlp")
    if config.new_decoder_architecture or config.parallel_attn:
        return Norms(before="input_layernorm"), Norms(before="input_layernorm")
    return Norms(before="input_layernorm"), Norms(before="post_attention_layernorm")
