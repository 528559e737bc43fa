"""StableLM 2 (arXiv 2402.17834): layer norms, partial rotary embedding; blocks may be parallel, heads normed."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Norm, Norms, QueryKeyNorm
from .fields import attention, decoder, layer_norm


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    parallel = config.use_parallel_residual
    heads = QueryKeyNorm("self_attn.q_layernorm", "self_attn.k_layernorm", "each", Norm("layer", config.layer_norm_eps))
    return decoder(
        config,
        "StableLM",
        attention=attention(config, norm=heads if config.qk_layernorm else None),
        norm=layer_norm(config),
        mlp_norms=Norms(before="input_layernorm" if parallel else "post_attention_layernorm"),
        parallel=parallel,
        names=ConfigNames(head_size=""),
    )
