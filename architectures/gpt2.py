"""GPT-2: learned positions, layer norms, a plain MLP. Its layers are stored transposed (see `stored_transposed`)."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, LayerKind, LearnedPositions, Norms
from .fields import attention, decoder, layer_norm, mlp, refuse


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.add_cross_attention:
        raise refuse(config, "add_cross_attention", "attention to an encoder is not supported")
    size = config.hidden_size // config.num_attention_heads
    scale = size**-0.5 if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    return decoder(
        config,
        "GPT-2",
        layers=tuple(
            LayerKind(rotary="", scale=scale / (index + 1) if by_layer else scale)
            for index in range(config.num_hidden_layers)
        ),
        attention=attention(config, kv_heads=config.num_attention_heads, inputs=("attn.c_attn",), output="attn.c_proj"),
        mlp=mlp(
            config,
            "activation_function",
            width=config.n_inner or 4 * config.hidden_size,
            inputs=("mlp.c_fc",),
            output="mlp.c_proj",
            gated=False,
        ),
        norm=layer_norm(config, "layer_norm_epsilon"),
        attention_norms=Norms(before="ln_1"),
        mlp_norms=Norms(before="ln_2"),
        rotary=None,
        positions=LearnedPositions("transformer.wpe"),
        path="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        names=ConfigNames(width="n_inner", kv_heads="", head_size=""),
    )
