"""What can be wrong with a model's config.json: a change of a sound directory, and what the refusal says."""

from damage import content, fields, without


def rope(**parameters):
    return fields(rope_parameters={"rope_theta": 1e4} | parameters)


def family(model_type, architecture, **changed):
    return fields(model_type=model_type, architectures=[architecture], **changed)


CONFIGURATIONS = {
    "missing": (without("config.json"), "it has no config.json"),
    "empty": (content("config.json", ""), "config.json cannot be read as JSON"),
    "no JSON": (content("config.json", "{"), "config.json cannot be read as JSON"),
    "a list": (content("config.json", "[]"), "config.json is no JSON object, but a list"),
    "no text": (content("config.json", b"\xff\xfe"), "config.json cannot be read as JSON"),
    "deep": (content("config.json", "[" * 5000), "config.json cannot be read as JSON"),
    "no family": (fields(model_type=None), "config.json has no model_type"),
    "a family as a number": (fields(model_type=3), "config.json has no model_type"),
    "a family that nobody knows": (fields(model_type="foo"), "model_type 'foo' is none that transformers knows"),
    "a family with code": (
        fields(model_type="foo", auto_map={"AutoConfig": "evil.Config"}),
        "(code that comes with a model is not run); `hebbline pack`",
    ),
    "a size as a word": (fields(hidden_size="96"), "Field 'hidden_size' expected int, got str"),
    "a size below 1": (fields(num_hidden_layers=0), "num_hidden_layers is 0; it must be at least 1"),
    "negative heads": (fields(num_key_value_heads=-2), "num_key_value_heads is -2; it must be at least 1"),
    "heads that do not divide": (fields(num_attention_heads=5), "The hidden size (96) is not a multiple"),
    "another hidden size": (
        fields(hidden_size=120),
        "'model.embed_tokens.weight' is [320, 96], and should be [320, 120]",
    ),
    "another vocabulary": (fields(vocab_size=1000), "is [320, 96], and should be [1000, 96]"),
    "a million layers": (fields(num_hidden_layers=10**6), "says 1000000 layers, and no tensor of the weights is of"),
    "fewer layers": (fields(num_hidden_layers=1), "tensor 'model.layers.1.input_layernorm.weight' has no place"),
    "biases that are not there": (fields(attention_bias=True), "have no tensor 'model.layers.0.self_attn.k_proj.bias'"),
    "an activation as a number": (fields(hidden_act=3), "Field 'hidden_act' expected str, got int"),
    "a type as a number": (fields(dtype=3), "dtype is 3; it is the name of a type"),
    "end of text as a word": (fields(eos_token_id="</s>"), "Field 'eos_token_id' with value '</s>'"),
    "rotary parameters as a word": (fields(rope_parameters="yarn"), "Field 'rope_parameters' with value 'yarn'"),
    "yarn without a factor": (rope(rope_type="yarn"), "Missing required keys in `rope_parameters`"),
    "longrope without factors": (rope(rope_type="longrope"), "Missing required keys in `rope_parameters`"),
    "layer types of fewer layers": (
        family("qwen2", "Qwen2ForCausalLM", layer_types=["full_attention"]),
        "must be equal to the number of `layer_types`",
    ),
    "quantised by another tool": (fields(quantization_config={"quant_method": "gptq"}), "says 'gptq'"),
}
"""What every command refuses."""

FAMILIES = {
    "another family": (family("bloom", "BloomForCausalLM"), "BloomForCausalLM is of none of the families"),
    "an encoder": (family("bert", "BertModel"), "BertModel is of none of the families"),
    "an encoder-decoder": (family("t5", "T5ForConditionalGeneration"), "is of none of the families"),
    "another head": (fields(architectures=["LlamaForSequenceClassification"]), "is of none of the families"),
    "an architecture as a number": (fields(architectures=[3]), "architecture 3 is of none of the families"),
    "an activation that is not taken": (fields(hidden_act="mish"), "hidden_act 'mish' is not supported"),
    "a rotary type that is not taken": (rope(rope_type="proportional"), "rope_type 'proportional' is not supported"),
    "heads that kernels do not take": (fields(head_dim=20), "attention heads of size 20 are not supported"),
    "layers that attend otherwise": (
        family("qwen2", "Qwen2ForCausalLM", layer_types=["full_attention", "linear_attention"]),
        "layer_types names 'linear_attention'",
    ),
}
"""What is refused before it is trained or exported, by a line that names `hebbline pack`."""

VALUES = {
    "groups of heads that do not divide": (fields(num_key_value_heads=4), "6 query heads are no multiple of 4"),
    "an unknown activation": (fields(hidden_act="swiglu2"), "hidden_act 'swiglu2' is no activation that transformers"),
    "no window": (
        family("mistral", "MistralForCausalLM", sliding_window=0),
        "sliding_window is 0; a window is at least",
    ),
    "a negative window": (family("mistral", "MistralForCausalLM", sliding_window=-1), "sliding_window is -1; a window"),
    "an unknown rotary type": (
        rope(rope_type="spiral"),
        "rope_parameters.rope_type 'spiral' is none that transformers",
    ),
    "a rotary factor as a word": (rope(rope_type="yarn", factor="4"), "factor of rope_type 'yarn' is '4'"),
    "a rotary factor of 0": (rope(rope_type="linear", factor=0), "is 0; it must be a number of at least 1"),
    "a rotary base of 0": (
        rope(rope_type="default", rope_theta=0),
        "rope_theta of rope_type 'default' is 0; it must be",
    ),
    "a negative rotary base": (rope(rope_type="default", rope_theta=-1e4), "is -10000.0; it must be a number above 0"),
    "a rotary base that is no number": (rope(rope_type="default", rope_theta=float("nan")), "is nan; it must be"),
    "an infinite rotary base": (rope(rope_type="default", rope_theta=float("inf")), "is inf; it must be"),
    "a rotary base of an earlier transformers": (
        fields(rope_parameters=None, rope_theta=-1, rope_scaling=None),
        "rope_theta of rope_type 'default' is -1; it must be",
    ),
    "a rotation of more than a head": (
        rope(rope_type="default", partial_rotary_factor=2.0),
        "partial_rotary_factor of rope_type 'default' is 2.0; it must be a number above 0, and at most 1",
    ),
    "no original context": (
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=-24),
        "original_max_position_embeddings of rope_type 'yarn' is -24; it must be a whole number of tokens",
    ),
    "bands of frequencies the wrong way round": (
        rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=4.0,
            high_freq_factor=1.0,
            original_max_position_embeddings=64,
        ),
        "rope_parameters.high_freq_factor is 1.0; it must be above low_freq_factor, 4.0",
    ),
    "factors of another size": (
        rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0], original_max_position_embeddings=24),
        "short_factor has 1 numbers, and 8 pairs of places turn",
    ),
    "factors of 0": (
        rope(rope_type="longrope", short_factor=[1.0] * 8, long_factor=[0] * 8, original_max_position_embeddings=24),
        "rope_parameters.long_factor must be a list of numbers above 0",
    ),
    "a negative epsilon": (fields(rms_norm_eps=-1.0), "the epsilon of norms is -1.0"),
    "an epsilon that is no number": (fields(rms_norm_eps=float("nan")), "the epsilon of norms is nan"),
}
"""Values with which transformers would compute nonsense, or stop in the midst of it: every command refuses them."""
