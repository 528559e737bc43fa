"""Qwen3 (arXiv 2505.09388): each head of queries and keys is normed."""

from transformers import PretrainedConfig

from .decoder import Decoder, QueryKeyNorm
from .fields import attention, decoder, rms_norm, windowed_layers


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    norm = QueryKeyNorm("self_attn.q_norm", "self_attn.k_norm", "head", rms_norm(config))
    return decoder(config, "Qwen3", layers=windowed_layers(config), attention=attention(config, norm=norm))
