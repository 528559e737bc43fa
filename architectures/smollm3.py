"""SmolLM3 (huggingface.co/blog/smollm3): Llama with some layers without rotary embedding, and windows where asked."""

from dataclasses import replace

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder
from .fields import decoder, windowed_layers


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    kinds = zip(windowed_layers(config), config.no_rope_layers, strict=True)
    # `no_rope_layers` is 1 where a layer has rotary embedding.
    layers = tuple(kind if turned else replace(kind, rotary="") for kind, turned in kinds)
    return decoder(config, "SmolLM3", layers=layers, names=ConfigNames(head_size=""))
