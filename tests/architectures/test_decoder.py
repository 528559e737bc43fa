"""What a description says, what is refused, and a family that is made up."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES, make_config, make_model
from family_graphs import TOKENS, assert_close, build, source_of, steps
from torch import nn
from transformers import GPTJConfig, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hebbline.architectures import FAMILIES as KNOWN
from hebbline.architectures import Decoder, Norms, check_fits, decoder_of, describe, use_linear_layers
from hebbline.architectures.fields import decoder
from hebbline.architectures.registry import Family
from hebbline.artifacts import UnsupportedModelError
from hebbline.export.graph import StockAttention, VarlenAttention
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.varlen import VarlenRunner

REFUSED = {
    "another family": (lambda: GPTJConfig(), r"gptj is of none of the families that are taken .*hebbline pack"),
    "activation": (lambda: make_config("llama").__class__(hidden_act="mish"), "hidden_act 'mish'.*hebbline pack"),
    "ALiBi": (lambda: changed("falcon", alibi=True), "alibi True of a falcon: ALiBi is not supported; `hebbline pack`"),
    "cross attention": (lambda: changed("gpt2", add_cross_attention=True), "add_cross_attention True of a gpt2"),
    "narrow embeddings": (lambda: changed("opt", word_embed_proj_dim=32), "word_embed_proj_dim 32 of a opt"),
    "later tokens": (lambda: changed("gemma3", use_bidirectional_attention=True), "sees later tokens"),
    "layer type": (lambda: changed("qwen3", layer_types=["full_attention", "chunked_attention"]), "chunked_attention"),
    "head size": (lambda: changed("llama", head_dim=20), "heads of size 20 .* multiples of 8"),
    "rotary type": (
        lambda: changed("llama", rope_parameters={"rope_type": "proportional", "rope_theta": 1e4}),
        "rope_type 'proportional'.*hebbline pack",
    ),
}


def changed(variant, **fields):
    config = make_config(variant)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_there_is_not_is_refused_by_its_name(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        describe(make())


def test_a_window_that_the_context_does_not_fill_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        found = describe(changed("mistral", sliding_window=96))
    assert {kind.window for kind in found.layers} == {0} and found.reach == 0
    assert "sliding_window 96 is no smaller than the context of 96 tokens" in caplog.text


def test_a_decoder_that_does_not_fit_its_weights_is_named_by_tensor():
    model = make_model("qwen3")
    narrow = describe(changed("qwen3", intermediate_size=64))
    with pytest.raises(UnsupportedModelError, match=r"tensor 'model\.layers\.0\.mlp\.gate_proj\.weight' is \[72, 64\]"):
        check_fits(narrow, model)
    with pytest.raises(UnsupportedModelError, match=r"has no tensor 'model\.layers\.0\.attn\.c_attn\.weight'"):
        gpt2 = replace(describe(make_config("gpt2")), positions=None, path="model.layers", final_norm="model.norm")
        norms = {"attention_norms": Norms(), "mlp_norms": Norms()}
        check_fits(replace(gpt2, embedding="model.embed_tokens", **norms), model)


def test_only_known_models_have_a_description():
    assert decoder_of(make_model("llama")).family == "Llama"
    assert decoder_of(nn.Linear(2, 2)) is None and decoder_of(LlamaModel(make_config("llama"))) is None


def test_gpt2_is_saved_as_transformers_has_it(tmp_path):
    """Layers are turned on reading, and turned back on writing."""
    model = make_model("gpt2")
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(20)[None]
    logits = model(ids).logits
    use_linear_layers(model)
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)
    assert isinstance(model.get_submodule("transformer.h.0.attn.c_attn"), nn.Linear)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    model.load_state_dict(expected)
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)


class InventedConfig(LlamaConfig):
    model_type = "invented"


class InventedLayer(LlamaDecoderLayer):
    """Attention and MLP read the stream through one norm each, side by side."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))


class InventedForCausalLM(LlamaForCausalLM):
    config_class = InventedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.layers = nn.ModuleList([InventedLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output


def describe_invented(config) -> Decoder:
    """All that a new family takes."""
    return decoder(config, "Invented", parallel=True, logit_softcap=5.0)


def test_an_invented_family_takes_one_file(monkeypatch, tmp_path):
    monkeypatch.setitem(KNOWN, "invented", Family("InventedForCausalLM", describe_invented))
    torch.manual_seed(0)
    sizes = {name: value for name, value in make_config("llama").to_dict().items() if name in INVENTED_SIZES}
    source = source_of(InventedForCausalLM(InventedConfig(**sizes, initializer_range=0.2)).eval())
    ids = np.random.default_rng(0).integers(0, 64, TOKENS).tolist()
    with torch.inference_mode():
        expected = source.model(torch.tensor([ids])).logits[0].numpy()
    for runner, form in ((PortableRunner, StockAttention()), (VarlenRunner, VarlenAttention())):
        assert_close(steps(runner(build(source, tmp_path, form), source.facts(), 2, 1), ids), expected)
    assert build_static_decoder(source).graph.node


INVENTED_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "vocab_size",
)


def test_every_family_is_in_the_matrix():
    """A family that is added is a line in the matrix too."""
    assert {model_type for model_type, _ in FAMILIES.values()} == set(KNOWN)
    kinds = [describe(make_config(variant)) for variant in FAMILIES]
    assert {kind.mlp.activation for kind in kinds} == {"silu", "gelu", "gelu_tanh", "relu"}
    assert {kind.attention.norm.span for kind in kinds if kind.attention.norm} == {"head", "each", "all"}
    assert {kind.attention.fused for kind in kinds} == {"parts", "groups"}
    assert {kind.norm.kind for kind in kinds} == {"rms", "layer"} and {kind.parallel for kind in kinds} == {True, False}
    assert any(kind.mlp_norms.stream for kind in kinds) and any(kind.mlp_norms.after for kind in kinds)
