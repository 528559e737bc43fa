"""Gemma 2 (arXiv 2408.00118): Gemma with norms before and after each block, soft caps, and a window in every other
layer."""

from transformers import PretrainedConfig

from .decoder import Decoder, Norms
from .fields import attention, decoder, mlp, refuse, rms_norm, windowed_layers


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.use_bidirectional_attention:
        raise refuse(config, "use_bidirectional_attention", "attention that sees later tokens is not supported")
    return decoder(
        config,
        "Gemma 2",
        layers=windowed_layers(config, scale=config.query_pre_attn_scalar**-0.5),
        attention=attention(config, softcap=config.attn_logit_softcapping or 0.0),
        mlp=mlp(config, "hidden_activation"),
        norm=rms_norm(config, offset=1.0),
        attention_norms=Norms(before="input_layernorm", after="post_attention_layernorm"),
        mlp_norms=Norms(before="pre_feedforward_layernorm", after="post_feedforward_layernorm"),
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=config.final_logit_softcapping or 0.0,
    )
