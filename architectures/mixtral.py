"""Mixtral (arXiv 2401.04088): Mistral with experts, of which each token takes the best few."""

from transformers import PretrainedConfig

from .decoder import Decoder, Experts, LayerKind
from .fields import decoder, layers_alike, mlp, window


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    experts = Experts(config.num_local_experts, config.num_experts_per_tok)
    return decoder(
        config,
        "Mixtral",
        layers=layers_alike(config, LayerKind(window=window(config))),
        mlp=mlp(config, inputs=("gate_proj", "up_proj"), output="down_proj", experts=experts),
    )
