import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_llama import assert_masks_fit, assert_same_function, logits, make_sparse_llama, one_thread

from hebbline.artifacts import InputError
from hebbline.export.layouts.nm24 import fitting_links
from hebbline.export.passes import permute
from hebbline.export.passes.edit import ModelEdit
from hebbline.export.passes.freedom import free_dimensions
from hebbline.export.passes.permutation import block_fit

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

VARIANTS = {
    "grouped queries, tied": {},
    "untied": {"tie_word_embeddings": False},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 6},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
}
variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=list(VARIANTS))


@variants
def test_every_free_dimension_may_take_any_order(overrides):
    """Each on its own, in a random order: what it claims to be all of its uses is all."""
    model, masks = make_sparse_llama(**overrides)
    dimensions = free_dimensions(model)
    assert len(dimensions) == 1 + 2 * (1 + model.config.num_key_value_heads)
    for number, dimension in enumerate(dimensions):
        edit = ModelEdit(model, masks)
        order = np.random.default_rng(number).permutation(dimension.size)
        for use in dimension.uses:
            edit.select(use, order, dimension.size)
        assert_same_function(model, edit.model)


@pytest.mark.parametrize(("first", "second"), [([0, 8], [1, 9]), ([0], [8])])
def test_rotary_places_are_not_free(first, second):
    """What is left out is left out for a reason: two pairs that trade places, and a pair that is turned round."""
    model, _ = make_sparse_llama(density=1.0)
    expected = logits(model)
    order = np.arange(16)
    order[first], order[second] = second, first
    for name in ("q_proj", "k_proj"):
        weight = model.get_submodule("model.layers.0.self_attn").get_submodule(name).weight
        by_head = weight.data.reshape(-1, 16, 96)
        weight.data = by_head[:, order].reshape(weight.shape)
    assert (logits(model) - expected).abs().max() > 1e-3


@variants
@pytest.mark.parametrize("structure", ["2:4", "block"])
def test_permuted_models_compute_the_same(overrides, structure):
    model, masks = make_sparse_llama(density=0.08 if structure == "block" else 0.3, **overrides)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = logits(model)
    passed = permute(model, masks, structure)
    assert_same_function(model, passed.model)
    assert_masks_fit(passed)
    assert torch.equal(logits(model), expected), "the model that was given was changed"
    for name, parameter in passed.model.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
    if model.config.tie_word_embeddings:
        assert passed.model.lm_head.weight is passed.model.model.embed_tokens.weight
    for change in passed.report.layers:
        assert change.links_before == change.links_after == masks[change.name].sum() and change.reason


def test_more_of_every_layer_fits_two_of_four():
    model, masks = make_sparse_llama(hidden_size=128, intermediate_size=256, num_attention_heads=4, head_dim=32)
    passed = permute(model, masks, seed=1)
    for change in passed.report.layers:
        fitting, links = fitting_links(passed.masks[change.name]), masks[change.name].sum()
        assert change.fit_after == pytest.approx(fitting / links) and change.fit_before < change.fit_after
        assert change.fit_after > (0.965 if "down" in change.name else 0.93)
        assert "residual stream" in change.reason
    assert any("rotary" in note for note in passed.report.notes)


def hide_blocks(name, mask, rng):
    """A few whole blocks, under an order of rows and columns that is the same wherever a dimension is used."""
    blocks = rng.random([-(-extent // 16) for extent in mask.shape]) < 0.25
    whole = np.kron(blocks, np.ones((16, 16), bool)).astype(bool)[: mask.shape[0], : mask.shape[1]]
    residual, neurons = np.random.default_rng(1).permutation(96), np.random.default_rng(2).permutation(128)
    for axis in (0, 1):
        order = {96: residual, 128: neurons}.get(whole.shape[axis])
        if order is not None and not (axis == 1 and "o_proj" in name) and not (axis == 0 and "q_proj" in name):
            whole = np.take(whole, order, axis=axis)
    mask[:] = whole


def test_hidden_blocks_are_found():
    model, masks = make_sparse_llama(mask_of=hide_blocks, intermediate_size=128)
    passed = permute(model, masks, "block")
    before, after = (sum(block_fit(m)[1] for m in of.values()) for of in (masks, passed.masks))
    links = sum(int(mask.sum()) for mask in masks.values())
    assert links / before < 0.45 and links / after > 0.95
    assert_same_function(model, passed.model)


def test_what_cannot_be_better_stays_and_says_so():
    model, masks = make_sparse_llama(density=0.5, num_key_value_heads=6)
    passed = permute(model, masks, "block")
    assert all(np.array_equal(passed.masks[name], masks[name]) for name in masks)
    assert {change.reason for change in passed.report.layers} == {"left: no better order of a free dimension was found"}
    assert any("value head 0 and 11 others stay: 16 places" in note for note in passed.report.notes)
    assert any("all dimensions are as they were" in note for note in passed.report.notes)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    st.sampled_from([20, 24, 30]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_model_keeps_its_function_and_loses_no_fit(heads, density, width, tied, seed):
    """Also widths that four does not divide, and layers with all links or none."""
    model, masks = make_sparse_llama(
        density,
        seed,
        hidden_size=32,
        intermediate_size=width,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=tied,
    )
    passed = permute(model, masks, seed=seed)
    assert_same_function(model, passed.model)
    assert_masks_fit(passed)
    before, after = (sum(fitting_links(m) for m in of.values()) for of in (masks, passed.masks))
    assert after >= before


def test_a_seed_gives_one_result():
    model, masks = make_sparse_llama()
    first, again, other = (permute(model, masks, seed=seed) for seed in (7, 7, 8))
    assert first.report == again.report and first.report != other.report
    assert all(np.array_equal(first.masks[name], again.masks[name]) for name in masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.pop("model.layers.1.mlp.up_proj"), "up_proj' has no mask"),
        (lambda masks: masks.update({"model.layers.0.mlp.up_proj": np.ones((3, 3), bool)}), r"up_proj' is \(3, 3\)"),
        (lambda masks: masks.update({"model.layers.0.mlp.up_proj": np.zeros((104, 96), bool)}), "off its mask"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(change, message):
    model, masks = make_sparse_llama()
    change(masks)
    with pytest.raises(InputError, match=message):
        permute(model, masks)


def test_an_unknown_structure_is_refused():
    with pytest.raises(InputError, match="'4:8' is none of 2:4, block"):
        permute(*make_sparse_llama(), "4:8")
