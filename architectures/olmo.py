"""OLMo (arXiv 2402.00838): layer norms without weights; queries, keys and values may be clipped."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Norm
from .fields import attention, decoder

_EPSILON = 1e-5
"""Not in the configuration: OlmoLayerNorm of transformers has it."""


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(
        config,
        "OLMo",
        attention=attention(config, clip=config.clip_qkv or 0.0),
        norm=Norm("layer", _EPSILON, affine=False),
        names=ConfigNames(head_size=""),
    )
