"""Which weights a Sparsifier takes: every kind of layer by its matrices, output layers by what they are, experts never
without a word."""

import pytest
import torch
from tiny import make_llama
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.models.mixtral import MixtralConfig, MixtralForCausalLM

from hebbline.artifacts import InputError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics.places import find_places
from hebbline.train.save import save_model_directory

VOCABULARY = 64


class Attention(nn.Module):
    """torch's attention, with one width or with others for keys and values."""

    def __init__(self, **widths):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True, **widths)
        self.widths = widths

    def forward(self, x):
        keys = x[..., : self.widths.get("kdim", 16)]
        return self.inner(x, keys, x[..., : self.widths.get("vdim", 16)])[0].mean(dim=1)


class Recurrent(nn.Module):
    """The last output of an LSTM of two layers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LSTM(16, 12, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.inner(x)[0][:, -1]


class Convolution(nn.Sequential):
    """Two convolutions, of which the depthwise one stays dense."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(1), nn.Linear(6 * 3 * 12, 5))

    def forward(self, x):
        return super().forward(x[:, None])


MODELS = {
    "attention": (Attention, {"inner.q_proj": (16, 16), "inner.k_proj": (16, 16), "inner.v_proj": (16, 16)}),
    "attention of other widths": (
        lambda: Attention(kdim=8, vdim=12),
        {"inner.k_proj": (16, 8), "inner.v_proj": (16, 12)},
    ),
    "lstm": (Recurrent, {"inner.weight_ih_l0": (48, 16), "inner.weight_hh_l1": (48, 12)}),
    "convolution": (Convolution, {"0": (6, 9), "3": (5, 216)}),
}


def train(model, config, steps=13):
    torch.manual_seed(0)
    sparsifier = Sparsifier(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 7, 16)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    return sparsifier, optimizer


@pytest.mark.parametrize("method", ["set", "rigl", "gmp", "chts"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_layer_keeps_its_links_under_any_method(kind, method):
    make, shapes = MODELS[kind]
    if kind == "convolution" and method == "chts":
        pytest.skip("the same code as chts of attention")
    model = make()
    sparsifier, optimizer = train(model, SparsityConfig(method=method, density=0.3, update={"every": 3, "stop": 12}))
    places = find_places(model)
    assert all(tuple(sparsifier.masks[name].shape) == shape for name, shape in shapes.items())
    assert sparsifier.density == pytest.approx(0.3, abs=0.02)
    for name, mask in sparsifier.masks.items():
        parameter = model.get_parameter(places[name].parameter)
        for value in (parameter.detach(), parameter.grad, *optimizer.state[parameter].values()):
            if value.shape == parameter.shape:
                assert not places[name].matrix(value)[~mask].any()
        assert places[name].matrix(parameter.detach())[mask].count_nonzero() > 0.8 * mask.sum()


def test_the_initial_links_are_those_of_the_matrix_and_not_of_how_it_is_held():
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.25, topology={"kind": "magnitude"}))
    mask = sparsifier.masks["transformer.h.0.mlp.c_fc"]
    assert mask.shape == (128, 32) and len(sparsifier.masks) == 4
    largest = torch.zeros(weight.numel(), dtype=torch.bool)
    largest[weight.abs().flatten().topk(mask.sum()).indices] = True
    assert torch.equal(mask.T, largest.reshape(weight.shape))


def test_gpt2_is_published_with_masks_of_outputs_by_inputs(tmp_path, tokenizer):
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.25))
    save_model_directory(tmp_path / "model", model, tokenizer, sparsifier.masks, method="static")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    name = "transformer.h.0.attn.c_attn"
    assert not again.get_submodule(name).weight.T[~sparsifier.masks[name]].any()


def test_output_layers_are_known_by_what_they_are():
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = BertForMaskedLM(config)
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.3))
    assert "cls.predictions.decoder" not in sparsifier.masks and len(sparsifier.masks) == 7
    assert model.bert.embeddings.word_embeddings.weight.count_nonzero() >= (VOCABULARY - 1) * 32
    assert "bert.embeddings.word_embeddings.weight" in sparsifier.dense
    untied = make_llama(VOCABULARY, tie_word_embeddings=False)
    assert "lm_head" not in Sparsifier(untied, SparsityConfig(exclude=[])).masks
    assert "lm_head" in Sparsifier(untied, SparsityConfig(include=["*", "lm_head"], exclude=[])).masks
    tied = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    tied[2].weight = tied[0].weight
    assert list(Sparsifier(tied, SparsityConfig()).masks) == ["1"]
    with pytest.raises(InputError, match="layer '2' shares its weight with an embedding"):
        Sparsifier(tied, SparsityConfig(include=["2"]))


def test_what_stays_dense_is_said():
    sparsifier = Sparsifier(make_llama(VOCABULARY), SparsityConfig(method="static", density=0.25))
    assert sparsifier.dense == {"model.embed_tokens.weight": 64 * 96}
    possible = sum(mask.numel() for mask in sparsifier.masks.values())
    assert sparsifier.summary == (
        f"25.00% of the {possible:,} possible links of 14 layers; 6,144 weights stay dense: model.embed_tokens.weight"
    )


def test_experts_do_not_stay_dense_without_a_word():
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    with pytest.raises(InputError, match=r"layer 'model\.layers\.0\.mlp\.experts\.\S+' holds several matrices"):
        Sparsifier(MixtralForCausalLM(config), SparsityConfig(method="static"))
    sparsifier = Sparsifier(
        MixtralForCausalLM(config), SparsityConfig(method="static", exclude=["lm_head", "*.experts.*"])
    )
    assert len(sparsifier.masks) == 4 and "model.layers.0.mlp.experts.down_proj" in sparsifier.dense


def test_links_are_held_alone_by_linear_layers_only():
    with pytest.raises(InputError, match=r"compute 'links': layer '0' is no Linear"):
        Sparsifier(Convolution(), SparsityConfig(method="static", compute="links"))


def test_a_frozen_fused_projection_is_named():
    model = Attention()
    model.inner.in_proj_weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"layer 'inner\.q_proj' is frozen"):
        Sparsifier(model, SparsityConfig())


def test_averages_hold_old_links_until_they_are_masked():
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))
    sparsifier = Sparsifier(model, SparsityConfig(method="set", density=0.2, update={"every": 2, "stop": 20}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        averaged.update_parameters(model)
    off = ~sparsifier.masks["0"]
    assert averaged.module[0].weight[off].any()
    kept = averaged.module[0].weight[~off].clone()
    sparsifier.mask(averaged)
    assert not averaged.module[0].weight[off].any() and torch.equal(averaged.module[0].weight[~off], kept)
    with pytest.raises(InputError, match=r"no layer '0' of shape \(24, 24\)"):
        sparsifier.mask(nn.Sequential(nn.Linear(8, 8)))
