"""StarCoder 2 (arXiv 2402.19173): layer norms, biases, a plain MLP, a sliding window in every layer."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, LayerKind
from .fields import decoder, layer_norm, layers_alike, mlp, window


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(
        config,
        "StarCoder 2",
        layers=layers_alike(config, LayerKind(window=window(config))),
        mlp=mlp(config, inputs=("mlp.c_fc",), output="mlp.c_proj", gated=False),
        norm=layer_norm(config, "norm_epsilon"),
        names=ConfigNames(head_size=""),
    )
