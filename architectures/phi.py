"""Phi-1, 1.5 and 2 (arXiv 2309.05463): parallel blocks under one layer norm, partial rotary embedding, a plain MLP."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Norms, QueryKeyNorm
from .fields import attention, decoder, layer_norm, mlp


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    norm = layer_norm(config)
    heads = QueryKeyNorm("self_attn.q_layernorm", "self_attn.k_layernorm", "head", norm)
    return decoder(
        config,
        "Phi",
        attention=attention(config, output="self_attn.dense", norm=heads if config.qk_layernorm else None),
        mlp=mlp(config, inputs=("mlp.fc1",), output="mlp.fc2", gated=False),
        norm=norm,
        attention_norms=Norms(before="input_layernorm"),
        mlp_norms=Norms(before="input_layernorm"),
        parallel=True,
        final_norm="model.final_layernorm",
        names=ConfigNames(head_size=""),
    )
