"""Llama 1 to 3 (arXiv 2302.13971), SmolLM and SmolLM2."""

from transformers import PretrainedConfig

from .decoder import Decoder
from .fields import decoder


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(config, "Llama")
