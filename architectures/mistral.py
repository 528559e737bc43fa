"""Mistral (arXiv 2310.06825): Llama with a sliding window in every layer."""

from transformers import PretrainedConfig

from .decoder import Decoder, LayerKind
from .fields import decoder, layers_alike, window


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(config, "Mistral", layers=layers_alike(config, LayerKind(window=window(config))))
