"""OPT (arXiv 2205.01068): learned positions, layer norms before the blocks or of the stream after them (350M)."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder, LayerKind, LearnedPositions, Norm, Norms
from .fields import attention, decoder, layers_alike, mlp, refuse

_EPSILON = 1e-5
"""Not in the configuration: torch's own default."""


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    if config.word_embed_proj_dim != config.hidden_size:
        raise refuse(
            config,
            "word_embed_proj_dim",
            f"embeddings narrower than hidden_size {config.hidden_size} are not supported",
        )
    before = config.do_layer_norm_before
    attention_norm, mlp_norm = "self_attn_layer_norm", "final_layer_norm"
    return decoder(
        config,
        "OPT",
        layers=layers_alike(config, LayerKind(rotary="")),
        attention=attention(config, kv_heads=config.num_attention_heads, output="self_attn.out_proj"),
        mlp=mlp(config, "activation_function", width=config.ffn_dim, inputs=("fc1",), output="fc2", gated=False),
        norm=Norm("layer", _EPSILON, affine=config.layer_norm_elementwise_affine),
        attention_norms=Norms(before=attention_norm) if before else Norms(stream=attention_norm),
        mlp_norms=Norms(before=mlp_norm) if before else Norms(stream=mlp_norm),
        rotary=None,
        # The first two rows of the table are not positions.
        positions=LearnedPositions("model.decoder.embed_positions", offset=2),
        path="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm" if before and not config._remove_final_layer_norm else "",
        names=ConfigNames(width="ffn_dim", kv_heads="", head_size=""),
    )
