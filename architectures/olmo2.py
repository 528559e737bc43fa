"""OLMo 2 (arXiv 2501.00656): norms after the blocks only; queries and keys are normed as a whole."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Norms, QueryKeyNorm
from .fields import attention, decoder, rms_norm


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    norm = QueryKeyNorm("self_attn.q_norm", "self_attn.k_norm", "all", rms_norm(config))
    return decoder(
        config,
        "OLMo 2",
        attention=attention(config, norm=norm),
        attention_norms=Norms(after="post_attention_layernorm"),
        mlp_norms=Norms(after="post_feedforward_layernorm"),
        names=ConfigNames(head_size=""),
    )
