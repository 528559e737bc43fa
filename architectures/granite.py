"""Granite 3 (github.com/ibm-granite/granite-3.0-language-models): Llama with multipliers on embedding, residual,
attention and logits."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, LayerKind
from .fields import decoder, layers_alike


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(
        config,
        "Granite",
        layers=layers_alike(config, LayerKind(scale=float(config.attention_multiplier))),
        embedding_scale=float(config.embedding_multiplier),
        residual_scale=float(config.residual_multiplier),
        logit_divisor=float(config.logits_scaling),
        names=ConfigNames(head_size=""),
    )
