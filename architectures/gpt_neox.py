"""GPT-NeoX and Pythia (arXiv 2204.06745): queries, keys and values of each head side by side in one layer; blocks may
be parallel, under two norms."""

from transformers import PretrainedConfig

from .decoder import ConfigNames, Decoder
from .fields import attention, decoder, layer_norm, mlp, rotary


def describe(config: PretrainedConfig) -> Decoder:
    """See `architectures.describe`."""
    return decoder(
        config,
        "GPT-NeoX",
        attention=attention(
            config,
            kv_heads=config.num_attention_heads,
            inputs=("attention.query_key_value",),
            output="attention.dense",
            fused="groups",
        ),
        mlp=mlp(config, inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h", gated=False),
        norm=layer_norm(config),
        parallel=config.use_parallel_residual,
        rotary=rotary(config, "gpt_neox.rotary_emb"),
        path="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        names=ConfigNames(kv_heads="", head_size=""),
    )
