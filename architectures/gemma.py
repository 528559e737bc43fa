"""Gemma (arXiv 2403.08295): norms weigh by 1 + w, embeddings are scaled, the gate is a GELU."""

from transformers import PretrainedConfig

from .decoder import Decoder
from .fields import decoder, refuse, rms_norm


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.use_bidirectional_attention:
        raise refuse(config, "use_bidirectional_attention", "attention that sees later tokens is not supported")
    return decoder(config, "Gemma", norm=rms_norm(config, offset=1.0), embedding_scale=config.hidden_size**0.5)
