"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases of queries, keys and values; some layers may have a sliding window."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder
from .fields import decoder, windowed_layers


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(config, "Qwen2", layers=windowed_layers(config), names=ConfigNames(head_size=""))
