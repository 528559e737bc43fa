import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_llama import assert_masks_fit, assert_same_function, logits, make_sparse_llama, one_thread
from transformers import LlamaForCausalLM

from hebbline.artifacts import InputError, UnsupportedModelError
from hebbline.export.passes import compact, permute

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

MLP = "model.layers.{}.mlp.{}_proj"
ATTENTION = "model.layers.{}.self_attn.{}_proj"


def clear(rows=None, columns=None):
    """A maker of masks: of each named layer these rows or columns have no links."""

    def change(name, mask, rng):
        for places, along in ((rows or {}, mask), (columns or {}, mask.T)):
            if name in places:
                along[places[name]] = False

    return change


def changes_of(passed):
    return {change.name: change for change in passed.report.layers}


def assert_lossless(model, passed):
    """Zeros left the sums: what may differ is the order in which BLAS adds the rest."""
    assert_same_function(model, passed.model, tolerance=1e-6)
    assert_masks_fit(passed)


def dead_neurons():
    """Layer 0: 30 without a link out, 10 of them and 20 more without gate. Layer 1: 24 without up."""
    return clear(
        rows={MLP.format(0, "gate"): slice(20, 50), MLP.format(1, "up"): slice(80, 104)},
        columns={MLP.format(0, "down"): slice(0, 30)},
    )


@pytest.mark.parametrize("tied", [True, False])
def test_mlps_shrink_to_what_the_widest_needs(tied, tmp_path):
    model, masks = make_sparse_llama(mask_of=dead_neurons(), tie_word_embeddings=tied)
    before, expected = {name: mask.copy() for name, mask in masks.items()}, logits(model)
    passed = compact(model, masks)
    assert passed.model.config.intermediate_size == 80 and model.config.intermediate_size == 104
    assert_lossless(model, passed)
    change = changes_of(passed)[MLP.format(0, "gate")]
    assert change.shape_before == (104, 96) and change.shape_after == (80, 96) and change.neurons_removed == 24
    assert change.reason == "50 of 104 neurons are dead: 30 without a link out, 20 without a link in gate or up"
    assert change.links_after == change.links_before - before[MLP.format(0, "gate")][:20].sum()
    assert torch.equal(logits(model), expected) and all(np.array_equal(masks[name], before[name]) for name in masks)
    passed.model.save_pretrained(tmp_path)
    assert_same_function(model, LlamaForCausalLM.from_pretrained(tmp_path).eval(), tolerance=1e-6)
    assert (passed.model.lm_head.weight is passed.model.model.embed_tokens.weight) == tied


def test_for_a_graph_each_mlp_has_its_own_width():
    model, masks = make_sparse_llama(mask_of=dead_neurons())
    passed = compact(model, masks, for_graph=True)
    assert [passed.masks[MLP.format(layer, "down")].shape[1] for layer in (0, 1)] == [56, 80]
    up = [one.get_parameter(MLP.format(1, "up") + ".weight") for one in (model, passed.model)]
    assert torch.equal(up[1], up[0][:80]), "live neurons keep their order"
    assert_lossless(model, passed)


def test_an_mlp_without_any_effect_keeps_one_step():
    names = [MLP.format(layer, "gate") for layer in (0, 1)]
    model, masks = make_sparse_llama(mask_of=clear(rows={name: slice(None) for name in names}))
    passed = compact(model, masks)
    assert passed.model.config.intermediate_size == 8
    assert not any(passed.masks[MLP.format(0, part)].any() for part in ("gate", "up", "down"))
    assert_lossless(model, passed)


def bias_of(model, name):
    return model.get_parameter(f"{name}.bias").detach().numpy()


def test_neurons_that_carry_a_bias_are_not_touched():
    """Also where it has no link at all its row stays."""
    model, masks = make_sparse_llama(mask_of=dead_neurons(), mlp_bias=True)
    passed = compact(model, masks, for_graph=True)
    gate, up = MLP.format(0, "gate"), MLP.format(0, "up")
    biased = (bias_of(model, gate) != 0) | (bias_of(model, up) != 0)
    touched = ~biased & (np.arange(104) < 50)
    assert 5 < touched.sum() < 20
    assert f"{50 - touched.sum()} of them stay, as they have a bias" in changes_of(passed)[up].reason
    assert passed.masks[up].shape[0] == -(-(104 - touched.sum()) // 8) * 8
    assert set(bias_of(model, gate)[biased].tolist()) <= set(bias_of(passed.model, gate).tolist())
    assert passed.masks[up].sum() == masks[up][~touched].sum()
    assert_lossless(model, passed)


BIASES = {
    "up": (MLP.format(0, "up"), "mlp_bias"),
    "gate": (MLP.format(0, "gate"), "mlp_bias"),
    "queries": (ATTENTION.format(0, "q"), "attention_bias"),
    "keys": (ATTENTION.format(0, "k"), "attention_bias"),
    "values": (ATTENTION.format(0, "v"), "attention_bias"),
}


@pytest.mark.parametrize(("layer", "option"), BIASES.values(), ids=list(BIASES))
def test_a_bias_alone_keeps_a_neuron_alive(layer, option):
    """A constant gate, query, key or value has an effect, which must not be lost."""
    model, masks = make_sparse_llama(mask_of=clear(rows={layer: slice(None)}), **{option: True})
    for name in masks:
        if name != layer and model.get_submodule(name).bias is not None:
            model.get_parameter(f"{name}.bias").data.zero_()
    assert_lossless(model, compact(model, masks))
    expected = logits(model)
    model.get_parameter(f"{layer}.bias").data.zero_()
    assert (logits(model) - expected).abs().max() > 1e-2


def test_a_value_head_that_carries_a_bias_stays_though_nothing_reads_it():
    dead = {ATTENTION.format(layer, "o"): slice(0, 48) for layer in (0, 1)}
    model, masks = make_sparse_llama(mask_of=clear(columns=dead), attention_bias=True)
    for part in "qk":
        for layer in (0, 1):
            model.get_parameter(ATTENTION.format(layer, part) + ".bias").data.zero_()
    passed = compact(model, masks)
    assert passed.model.config.num_key_value_heads == 2
    for layer in (0, 1):
        name = ATTENTION.format(layer, "v")
        assert np.array_equal(bias_of(passed.model, name), bias_of(model, name))
        biased = bias_of(model, name)[:16] != 0
        assert np.array_equal(passed.masks[name][:16], masks[name][:16] & biased[:, None])


def test_dead_places_lose_the_links_of_all_that_they_feed():
    """v without links takes o's; o without takes q's; all q of a pair take k's: three steps to the fixed point."""
    rows = {ATTENTION.format(0, "v"): slice(0, 16)}  # key/value head 0, which query heads 0 to 2 read
    model, masks = make_sparse_llama(mask_of=clear(rows=rows))
    passed = compact(model, masks)
    after = {part: passed.masks[ATTENTION.format(0, part)] for part in "qkvo"}
    assert not after["o"][:, :48].any() and not after["q"][:48].any() and not after["k"][:16].any()
    for part, rest in (("q", slice(48, None)), ("k", slice(16, None)), ("v", slice(16, None))):
        assert np.array_equal(after[part][rest], masks[ATTENTION.format(0, part)][rest])
    reason = changes_of(passed)[ATTENTION.format(0, "q")].reason
    assert reason == (
        "dead: 1 of 2 key/value heads, 3 of 6 query heads, 16 of 32 value places, 8 of 16 rotary pairs of keys"
    )
    assert passed.model.config.num_key_value_heads == 2 and after["q"].shape == (96, 96)  # layer 1 needs them
    assert "the layers need 2 with 3, and 2 with 3 stay" in passed.report.notes[-1]
    assert_lossless(model, passed)


def test_rotary_pairs_die_together_only():
    """Places 3 and 11 are turned into each other: one without links still has an effect."""
    rows = {ATTENTION.format(0, "k"): [3], ATTENTION.format(1, "k"): [3, 11]}
    model, masks = make_sparse_llama(mask_of=clear(rows=rows))
    passed = compact(model, masks)
    assert np.array_equal(passed.masks[ATTENTION.format(0, "q")], masks[ATTENTION.format(0, "q")])
    dead = [head * 16 + place for head in range(3) for place in (3, 11)]
    assert np.flatnonzero(~passed.masks[ATTENTION.format(1, "q")].any(axis=1)).tolist() == sorted(dead)
    assert_lossless(model, passed)


def test_a_head_without_queries_still_attends():
    """To all alike: its values are averaged, so it must stay."""
    model, masks = make_sparse_llama(mask_of=clear(rows={ATTENTION.format(0, "q"): slice(None)}))
    passed = compact(model, masks)
    assert not passed.masks[ATTENTION.format(0, "k")].any() and passed.masks[ATTENTION.format(0, "v")].any()
    assert_lossless(model, passed)


DEAD_HEADS = {
    # Columns of o by layer, and key/value heads, query heads of each, that stay for config.json and for a graph.
    "a key/value head": ({0: slice(0, 32), 1: slice(64, 96)}, (2, 2), (2, 2)),
    "query heads of each": ({0: [*range(16), *range(32, 48), *range(80, 96)], 1: slice(None)}, (3, 1), (3, 1)),
    "one layer's only": ({0: slice(0, 32)}, (3, 2), (3, 2)),
    "all": ({0: slice(None), 1: slice(None)}, (1, 1), (1, 1)),
}


@pytest.mark.parametrize(("columns", "stays", "in_graph"), DEAD_HEADS.values(), ids=list(DEAD_HEADS))
def test_heads_that_every_layer_can_spare_leave(columns, stays, in_graph, tmp_path):
    dead = {ATTENTION.format(layer, "o"): places for layer, places in columns.items()}
    model, masks = make_sparse_llama(mask_of=clear(columns=dead), num_key_value_heads=3)
    for for_graph, (groups, readers) in ((False, stays), (True, in_graph)):
        passed = compact(model, masks, for_graph=for_graph)
        config = passed.model.config
        assert (config.num_key_value_heads, config.num_attention_heads) == (groups, groups * readers)
        assert passed.masks[ATTENTION.format(0, "q")].shape == (groups * readers * 16, 96)
        assert_lossless(model, passed)
        passed.model.set_attn_implementation("eager")
        assert_same_function(model, passed.model)
    passed = compact(model, masks)
    passed.model.save_pretrained(tmp_path)
    assert_same_function(model, LlamaForCausalLM.from_pretrained(tmp_path).eval(), tolerance=1e-6)


def test_query_heads_stay_where_their_number_would_not_divide_the_hidden_size():
    dead = {ATTENTION.format(layer, "o"): slice(0, 16) for layer in (0, 1)}
    model, masks = make_sparse_llama(mask_of=clear(columns=dead), num_key_value_heads=6)
    passed, graph = compact(model, masks), compact(model, masks, for_graph=True)
    assert passed.model.config.num_attention_heads == 6 and graph.model.config.num_attention_heads == 5
    assert "which divides hidden_size" in passed.report.notes[-1]
    assert_lossless(model, passed)
    assert_lossless(model, graph)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    st.sampled_from([0.0, 0.03, 0.08, 0.3]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_any_model_is_compacted_without_loss_to_a_fixed_point(heads, density, biases, tied, seed):
    model, masks = make_sparse_llama(
        density,
        seed,
        hidden_size=32,
        intermediate_size=28,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        attention_bias=biases,
        mlp_bias=biases,
        tie_word_embeddings=tied,
    )
    for for_graph in (False, True):
        passed = compact(model, masks, for_graph=for_graph)
        assert_lossless(model, passed)
        again = compact(passed.model, passed.masks, for_graph=for_graph)
        assert all(np.array_equal(again.masks[name], mask) for name, mask in passed.masks.items())
        if not biases:
            for layer in (0, 1):
                ins = [passed.masks[MLP.format(layer, part)].any(axis=1) for part in ("gate", "up")]
                out = passed.masks[MLP.format(layer, "down")].any(axis=0)
                assert np.array_equal(ins[0], out) and np.array_equal(ins[1], out)
                spare = {True: 8, False: 28}[for_graph]
                assert len(out) - out.sum() < spare or out.sum() == 0


def test_what_is_compacted_can_be_permuted():
    model, masks = make_sparse_llama(mask_of=dead_neurons())
    compacted = compact(model, masks, for_graph=True)
    passed = permute(compacted.model, compacted.masks)
    assert_same_function(model, passed.model)
    assert_masks_fit(passed)


def test_a_layer_without_mask_is_named():
    model, masks = make_sparse_llama()
    del masks[ATTENTION.format(1, "o")]
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.o_proj' has no mask"):
        compact(model, masks)


def test_an_activation_that_is_not_zero_at_zero_is_refused():
    """A neuron without links would have an effect."""
    model, masks = make_sparse_llama(hidden_act="sigmoid")
    with pytest.raises(UnsupportedModelError, match="hidden_act 'sigmoid' is not supported"):
        compact(model, masks)
