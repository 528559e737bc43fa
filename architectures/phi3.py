"""Phi-3 and Phi-4 (arXiv 2404.14219): queries, keys and values in one layer, gate and up in another; LongRoPE."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, LayerKind
from .fields import attention, decoder, layers_alike, mlp, window


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(
        config,
        "Phi-3",
        layers=layers_alike(config, LayerKind(window=window(config))),
        attention=attention(config, inputs=("self_attn.qkv_proj",)),
        mlp=mlp(config, inputs=("mlp.gate_up_proj",)),
        names=ConfigNames(head_size=""),
    )
