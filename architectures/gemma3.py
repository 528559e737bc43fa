"""Gemma 3's text model (arXiv 2503.19786): Gemma 2 with normed queries and keys, and a rotary table of its own for the
layers with a window."""

from transformers import PretrainedConfig

from .decoder import Decoder, Norms, QueryKeyNorm
from .fields import attention, decoder, mlp, refuse, rms_norm, windowed_layers


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.use_bidirectional_attention:
        raise refuse(config, "use_bidirectional_attention", "attention that sees later tokens is not supported")
    norm = rms_norm(config, offset=1.0)
    # transformers computes no soft cap of Gemma 3's scores, whatever attn_logit_softcapping says.
    return decoder(
        config,
        "Gemma 3 (text)",
        layers=windowed_layers(
            config,
            scale=config.query_pre_attn_scalar**-0.5,
            tables={kind: kind for kind in ("full_attention", "sliding_attention")},
        ),
        attention=attention(config, norm=QueryKeyNorm("self_attn.q_norm", "self_attn.k_norm", "head", norm)),
        mlp=mlp(config, "hidden_activation"),
        norm=norm,
        attention_norms=Norms(before="input_layernorm", after="post_attention_layernorm"),
        mlp_norms=Norms(before="pre_feedforward_layernorm", after="post_feedforward_layernorm"),
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=config.final_logit_softcapping or 0.0,
    )
