"""Tiny models with random weights of every family, and of every variant of a part that a family may have."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * pair for pair in range(8)],
    "long_factor": [2.0 + 0.5 * pair for pair in range(8)],
    "original_max_position_embeddings": 24,
}
GPT2 = {"n_embd": 64, "n_inner": 72, "n_layer": 2, "n_head": 4, "n_positions": 96}
OPT = {"ffn_dim": 72, "word_embed_proj_dim": 64, "dropout": 0.0}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
FALCON = {"ffn_hidden_size": 72}
LAYER_TYPES = ["sliding_attention", "full_attention"]

FAMILIES = {
    "llama": ("llama", {}),
    "llama: llama3 rotary": ("llama", {"rope_parameters": LLAMA3}),
    "llama: yarn": ("llama", {"rope_parameters": YARN}),
    "llama: dynamic": ("llama", {"rope_parameters": DYNAMIC}),
    "llama: linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama: biases, heads of 24": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama: relu": ("llama", {"hidden_act": "relu"}),
    "llama: exact gelu": ("llama", {"hidden_act": "gelu", "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mistral: no window": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2: window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3: heads of 24": ("qwen3", {"head_dim": 24}),
    "qwen3_moe": ("qwen3_moe", MOE | {"head_dim": 32, "norm_topk_prob": True}),
    "qwen3_moe: not normed, heads of 24": ("qwen3_moe", MOE | {"head_dim": 24}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24, "layer_types": LAYER_TYPES},
    ),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "phi: normed heads": ("phi", {"qk_layernorm": True, "hidden_size": 128}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3: longrope": ("phi3", {"rope_parameters": LONGROPE}),
    "phi3: longrope within the original context": (
        "phi3",
        {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 96}},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo": ("olmo", {}),
    "olmo: clipped": ("olmo", {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "smollm3: window": (
        "smollm3",
        {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": LAYER_TYPES,
        },
    ),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "hidden_size": 128}),
    "stablelm: parallel, normed heads": (
        "stablelm",
        {"use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox: in sequence": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt2": ("gpt2", GPT2),
    "gpt2: scaled by layer": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "opt": ("opt", OPT),
    "opt: heads of 8": ("opt", OPT | {"num_attention_heads": 8}),
    "opt: norms of the stream": ("opt", OPT | {"do_layer_norm_before": False}),
    "falcon": ("falcon", FALCON),
    "falcon: new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon: new, one norm": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon: in sequence, biases": (
        "falcon",
        FALCON | {"parallel_attn": False, "multi_query": False, "bias": True},
    ),
}
"""Families with the sizes above, and variants: transformers' model type and what differs from `SIZES`."""

MIXTURES = [variant for variant in FAMILIES if variant.startswith(("mixtral", "qwen3_moe"))]
"""Those with experts, which neither TensorRT nor the passes take."""


def make_config(variant, vocab_size=64, **changes):
    """The configuration of a variant, but for `changes`."""
    model_type, differences = FAMILIES[variant]
    own = AutoConfig.for_model(model_type)
    sizes = {name: value for name, value in SIZES.items() if hasattr(own, name)}
    return AutoConfig.for_model(model_type, **(sizes | {"vocab_size": vocab_size} | differences | changes))


def make_model(variant, vocab_size=64, density=0.4, seed=0, **changes):
    """A model in which the layers within blocks have zeros; biases and norms have values of their own."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(variant, vocab_size, **changes)).eval()
    randomise(model, density)
    return model


def randomise(model, density=0.4):
    """Weights that decide between tokens, zeros in the linear layers, no bias or norm of 0 or 1."""
    for name, parameter in model.named_parameters():
        values = parameter.data
        if (
            values.ndim in (2, 3)
            and "embed" not in name
            and "head" not in name
            and "wte" not in name
            and "wpe" not in name
        ):
            values.normal_(0, 0.15).mul_(torch.rand_like(values) < density)
        elif values.ndim == 1:
            values.add_(torch.empty_like(values).normal_(0, 0.2))
