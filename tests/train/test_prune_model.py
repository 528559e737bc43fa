"""Pruning of whole decoders: any family, exact totals, what is left dense, and errors that name what is wrong."""

import pytest
import torch
from tiny import make_llama
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel, OPTConfig, OPTForCausalLM
from transformers.models.gemma3 import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.mixtral import MixtralConfig, MixtralForCausalLM

from hebbline.artifacts import InputError, UnsupportedModelError
from hebbline.train.prune import PruneConfig, prune
from hebbline.train.prune.run import prune_blocks

VOCABULARY = 64


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2))


def opt():
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    return OPTForCausalLM(config)


def gemma3():
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return Gemma3ForCausalLM(config)


FAMILIES = {"llama": lambda: make_llama(VOCABULARY), "gpt2": gpt2, "opt": opt, "gemma3": gemma3}
LAYERS = {"llama": 14, "gpt2": 8, "opt": 12, "gemma3": 14}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_ids(sequences=6, tokens=24, seed=0):
    """Text in which a token says much about the next one."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 4, (sequences, tokens), generator=generator)
    return steps.cumsum(dim=1) % VOCABULARY


def divergence(model, reference, ids):
    """Mean square of what changed in the logits."""
    with torch.no_grad():
        return float((model(ids).logits - reference(ids).logits).square().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_exact_masks_that_its_weights_obey(family):
    torch.manual_seed(0)
    model, ids = FAMILIES[family](), make_ids()
    head = model.lm_head.weight.clone()
    masks = prune(model, ids, density=0.4, passes=1)
    assert len(masks) == LAYERS[family]
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        weight = layer.weight.T if family == "gpt2" else layer.weight
        assert mask.shape == weight.shape and int(mask.sum()) == round(0.4 * mask.numel())
        assert not weight[~mask].any() and weight[mask].count_nonzero() > 0.9 * mask.sum()
    assert torch.equal(model.lm_head.weight, head)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_methods_stand_in_their_order_and_reconstruction_helps():
    ids, fresh = make_ids(16), make_ids(16, seed=1)
    found = {}
    for name, options in {
        "magnitude": {"method": "magnitude", "passes": 0},
        "sparsegpt": {"method": "sparsegpt", "passes": 0},
        "alps": {"passes": 0},
        "reconstructed": {"passes": 8, "learning_rate": 1e-3},
    }.items():
        model = make_llama(VOCABULARY)
        prune(model, ids, density=0.5, **options)
        found[name] = divergence(model, make_llama(VOCABULARY), fresh)
    assert found["reconstructed"] < found["alps"] < found["sparsegpt"] < found["magnitude"]


@pytest.mark.parametrize(("structure", "density"), [("2:4", 0.5), ("block", 0.4)])
def test_structures(structure, density):
    model = make_llama(VOCABULARY)
    config = PruneConfig(density=density, structure=structure, block_size=8, passes=1)
    pruned = prune_blocks(model, make_ids(), config)
    for mask in pruned.masks.values():
        assert config.mask_structure.is_legal(mask)
    assert pruned.density == pytest.approx(density, abs=2e-3)


@pytest.mark.parametrize("allocation", ["outliers", "loss"])
def test_allocated_densities_have_the_total_of_uniform_ones(allocation):
    model = make_llama(VOCABULARY)
    with torch.no_grad():  # outliers in one block, and an MLP on which nothing depends in the other
        model.model.layers[1].mlp.up_proj.weight[:, :3] *= 20
        model.model.layers[0].mlp.down_proj.weight.zero_()  # without effect
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune_blocks(model, make_ids(), PruneConfig(allocation=allocation, spread=0.1, passes=0, method="wanda"))
    model.load_state_dict(before)
    even = prune_blocks(model, make_ids(), PruneConfig(passes=0, method="wanda"))
    assert sum(layer.links for layer in pruned.layers) == sum(layer.links for layer in even.layers)
    densities = [layer.density for layer in pruned.layers]
    assert 0.399 < min(densities) < 0.48 and 0.52 < max(densities) < 0.601
    if allocation == "outliers":
        by_block = [sum(layer.links for layer in block.layers) for block in pruned.blocks]
        assert by_block[1] > by_block[0]
    else:
        idle = [layer.density for layer in pruned.blocks[0].layers if ".mlp." in layer.name]
        assert max(idle) < min(densities) + 2e-3 < 0.44


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_rounded_models_are_near_the_exact_ones(values):
    ids, fresh = make_ids(), make_ids(seed=1)
    costs = {}
    for kind in ("float32", values):
        model = make_llama(VOCABULARY)
        masks = prune(model, ids, density=0.5, passes=0, values=kind)
        costs[kind] = divergence(model, make_llama(VOCABULARY), fresh)
    assert costs[values] < (1.1 if values == "int8" else 2) * costs["float32"]
    name = "model.layers.0.mlp.gate_proj"
    row = model.get_submodule(name).weight[0][masks[name][0]]
    largest = 127 if values == "int8" else 7
    scale = row.abs().max() / largest
    torch.testing.assert_close(row / scale, (row / scale).round(), atol=1e-3, rtol=0)


def test_globs_choose_layers_and_the_rest_stays_dense():
    model = make_llama(VOCABULARY)
    attention = model.model.layers[0].self_attn.q_proj.weight.clone()
    masks = prune(model, make_ids(), density=0.5, passes=1, include=["*.mlp.*"], exclude=["*.1.mlp.down_proj"])
    assert sorted(name.rpartition(".")[2] for name in masks) == [
        *["down_proj"],
        *["gate_proj"] * 2,
        *["up_proj"] * 2,
    ]
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, attention)


def test_bfloat16_models_stay_bfloat16():
    model = make_llama(VOCABULARY).to(torch.bfloat16)
    masks = prune(model, make_ids(), density=0.5, passes=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.model.layers[0].mlp.up_proj.weight[~masks["model.layers.0.mlp.up_proj"]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0}, r"density 0 is outside"),
        ({"method": "magic"}, r"method 'magic' is none of alps, sparsegpt"),
        ({"structure": "2:4", "density": 0.6}, r"'2:4' in layer 'model\.layers\.0\.\S+' .*infeasible"),
        ({"structure": "block", "block_size": 7}, r"layer 'model\.layers\.0\.\S+' .*not a multiple"),
        ({"include": ["*.nothing"]}, r"include '\*\.nothing' matches no linear layer"),
        ({"exclude": ["*"]}, "leaves no layer"),
        ({"damping": 0}, "damping must be above 0"),
        ({"allocation": "fair"}, "allocation 'fair' is none of"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        prune(make_llama(VOCABULARY), make_ids(), **options)


def test_activations_that_are_not_finite_name_the_layer():
    model = make_llama(VOCABULARY)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"layer 'model\.layers\.1\.\S+'.*not finite"):
        prune(model, make_ids(), passes=0)


def test_models_that_are_no_plain_decoders_are_refused():
    experts = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
        )
    )
    with pytest.raises(UnsupportedModelError, match=r"layer 'model\.layers\.0\.\S+' holds the matrices of several exp"):
        prune(experts, make_ids())
    masks = prune(experts, make_ids(), exclude=["*.experts.*"], passes=0)
    assert sorted(name.rpartition(".")[2] for name in masks) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    pair = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            pad_token_id=0,
        )
    )
    with pytest.raises(UnsupportedModelError, match="encoder and decoder"):
        prune(pair, make_ids())
