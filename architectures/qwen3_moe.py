"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with experts in every layer."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, Experts, LayerKind, QueryKeyNorm
from .fields import attention, decoder, layers_alike, mlp, refuse, rms_norm, window


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.mlp_only_layers:
        raise refuse(config, "mlp_only_layers", "a model with experts has them in every layer")
    if config.decoder_sparse_step != 1:
        raise refuse(config, "decoder_sparse_step", "a model with experts has them in every layer")
    experts = Experts(config.num_experts, config.num_experts_per_tok, normed=config.norm_topk_prob)
    size = window(config) if config.use_sliding_window else 0
    return decoder(
        config,
        "Qwen3-MoE",
        layers=layers_alike(config, LayerKind(window=size)),
        attention=attention(
            config, norm=QueryKeyNorm("self_attn.q_norm", "self_attn.k_norm", "head", rms_norm(config))
        ),
        mlp=mlp(
            config,
            width=config.moe_intermediate_size,
            inputs=("gate_proj", "up_proj"),
            output="down_proj",
            experts=experts,
        ),
        names=ConfigNames(width="moe_intermediate_size"),
    )
