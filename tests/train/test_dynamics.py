import authors
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.artifacts import InputError
from hebbline.train.dynamics import (
    consecutive,
    density_schedule,
    keep_links,
    paired,
    regrow_links,
    removal_fraction,
    removal_scores,
    remove_chains,
)
from hebbline.train.dynamics.sampling import generator_for, race_keys, smallest


def rng(*identity):
    return generator_for("test", *identity)


def sample(weights, count, generator, temperature=1.0):
    mask = torch.zeros(1, len(weights), dtype=torch.bool)
    drawn = regrow_links(weights[None], mask, count, rule="soft", temperature=temperature, generator=generator)
    return drawn[0].nonzero().flatten()


@pytest.mark.parametrize(("kind", "key"), [("sigmoid", "s_shape"), ("cubic", "granet"), ("linear", "linear")])
def test_schedules_agree_with_the_authors_code(kind, key):
    found = 1 - np.array(density_schedule(kind, 0.5, 0.1, 80))
    authors.assert_agrees(found, f"schedule/{key}", rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["sigmoid", "cubic", "linear"])
def test_schedules_run_from_first_to_last_without_a_rise(kind):
    densities = density_schedule(kind, 0.5, 0.3, 20)
    assert densities[0] == pytest.approx(0.5) and densities[-1] == pytest.approx(0.3)
    assert densities == sorted(densities, reverse=True) and len(densities) == 21


def test_a_density_may_fall_over_a_share_of_the_updates():
    whole, half = density_schedule("sigmoid", 0.5, 0.3, 10), density_schedule("sigmoid", 0.5, 0.3, 20, share=0.5)
    assert half == pytest.approx(whole + 10 * [0.3])


def test_bad_schedules_are_refused():
    with pytest.raises(InputError, match="staircase"):
        density_schedule("staircase", 0.5, 0.3, 4)
    with pytest.raises(InputError, match="outside"):
        density_schedule("linear", 0.5, 0, 4)
    with pytest.raises(InputError, match="at least 1"):
        density_schedule("linear", 0.5, 0.3, 0)
    with pytest.raises(InputError, match="share"):
        density_schedule("linear", 0.5, 0.3, 4, share=0.0)


def test_fractions():
    assert [removal_fraction("constant", 0.3, x) for x in (0, 0.5, 1)] == [0.3] * 3
    np.testing.assert_allclose([removal_fraction("cosine", 0.3, x) for x in (0, 0.5, 1)], [0.3, 0.15, 0], atol=1e-12)


def test_relative_importance_agrees_with_the_authors_code():
    assert len(authors.cases("RI")) == 2
    for case in authors.cases("RI"):
        weight, mask = (
            torch.from_numpy(authors.links_of(f"{case}/weight")),
            torch.from_numpy(authors.mask_of(f"{case}/mask")),
        )
        authors.assert_agrees(removal_scores(weight, mask, "RI").numpy(), f"{case}/RI", rtol=1e-5, atol=1e-6)


def test_chains_agree_with_the_authors_code():
    masks = {name: torch.from_numpy(authors.mask_of(f"chain/{name}")) for name in ("mask1", "mask2")}
    remove_chains(masks, [consecutive("mask1", "mask2", 30)])
    assert np.array_equal(masks["mask1"].numpy(), authors.mask_of("chain/out1"))
    assert np.array_equal(masks["mask2"].numpy(), authors.mask_of("chain/out2"))
    masks = {name: torch.from_numpy(authors.mask_of(f"qk_chain/{name}")) for name in ("q", "k")}
    remove_chains(masks, [paired("q", "k", 30)])
    assert np.array_equal(masks["q"].numpy(), authors.mask_of("qk_chain/out_q"))
    assert np.array_equal(masks["k"].numpy(), authors.mask_of("qk_chain/out_k"))


def test_sampling_follows_the_weights():
    weights = torch.tensor([0.1, 0.2, 0.7, 0.0])
    draws = torch.cat([sample(weights, 1, rng(i)) for i in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(shares, weights, atol=0.03)


def test_second_draw_follows_the_weights_that_are_left():
    weights = torch.tensor([0.5, 0.3, 0.2])
    pairs = [set(sample(weights, 2, rng(i)).tolist()) for i in range(4000)]
    expected = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7  # {0, 1}: first 0 then 1, or first 1 then 0
    assert sum(pair == {0, 1} for pair in pairs) / len(pairs) == pytest.approx(expected, abs=0.03)


def test_sampling_fills_up_with_weightless_candidates_only_when_it_must():
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert set(sample(weights, 2, rng()).tolist()) == {0, 2}
    assert {0, 2} < set(sample(weights, 3, rng()).tolist())
    thirds = [set(sample(weights, 3, rng(i)).tolist()) - {0, 2} for i in range(200)]
    assert 60 < thirds.count({1}) < 140


def test_steep_weights_do_not_underflow():
    assert sample(torch.tensor([1e-3, 1e-2, 1e-1]), 1, rng(), temperature=900.0).tolist() == [2]


def test_sampling_beyond_two_to_the_24_candidates():
    """More candidates than torch.multinomial takes, and than float32 has distinct uniform numbers."""
    candidates = 2**24 + 3
    weights = torch.ones(candidates)
    weights[-2:] = 1e26
    drawn = sample(weights, 1000, rng())
    assert len(drawn.unique()) == 1000
    assert {candidates - 2, candidates - 1} < set(drawn.tolist())
    quarters = torch.bincount(drawn * 4 // candidates, minlength=4)
    assert int(quarters.min()) > 190


masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)).map(
    lambda t: torch.from_numpy(np.random.default_rng(t[2]).random((t[0], t[1])) < 0.4)
)


@settings(deadline=None)
@given(masks, st.floats(0, 1), st.sampled_from(["soft", "hard"]))
def test_keeping_keeps_links_only_and_exactly_as_many(mask, share, rule):
    count = int(share * int(mask.sum()))
    kept = keep_links(torch.rand(mask.shape) * mask, mask, count, rule=rule, temperature=2, generator=rng())
    assert int(kept.sum()) == count and not (kept & ~mask).any()


@settings(deadline=None)
@given(masks, st.floats(0, 1), st.sampled_from(["soft", "top"]), st.booleans())
def test_regrowing_adds_absent_links_and_exactly_as_many(mask, share, rule, scoreless):
    count = int(share * int((~mask).sum()))
    scores = torch.zeros(mask.shape) if scoreless else torch.rand(mask.shape)
    grown = regrow_links(scores, mask, count, rule=rule, temperature=1, generator=rng())
    assert int(grown.sum()) == int(mask.sum()) + count and not (mask & ~grown).any()


def test_hard_rules_take_the_extremes():
    mask = torch.tensor([[True, True, True, False, False, False]])
    scores = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 6.0]])
    kept = keep_links(scores, mask, 2, rule="hard", temperature=1, generator=rng())
    assert kept.tolist() == [[True, False, True, False, False, False]]
    grown = regrow_links(scores, mask, 2, rule="top", temperature=1, generator=rng())
    assert grown.tolist() == [[True, True, True, True, False, True]]


def test_the_smallest_are_exactly_as_many_where_keys_are_equal():
    keys = torch.tensor([[2.0, 1.0, 2.0], [2.0, torch.inf, 0.0]])
    for count in range(6):
        assert int(smallest(keys, count).sum()) == count
    assert int(smallest(keys, 6).sum()) == 5, "infinite keys are never taken"
    assert smallest(keys, 3).tolist() == [[True, True, False], [False, False, True]]


def test_races_of_millions_have_no_ties_to_speak_of():
    """In float32, uniform numbers of 24 bits would give 16 million candidates a tie in two of three."""
    keys = race_keys(torch.ones(2**24), rng())
    best = keys[smallest(keys, 2**16)]
    assert len(best.unique()) > 0.98 * len(best)
    shares = best * 2**24 / 2**16  # uniform in (0, 1), as Exp(1) is near 0
    np.testing.assert_allclose(np.quantile(shares.numpy(), [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_soft_removal_sharpens_with_temperature():
    mask, scores = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 2.0]])
    for temperature, expected in ((1, 2 / 3), (3, 8 / 9)):
        kept = [
            bool(keep_links(scores, mask, 1, rule="soft", temperature=temperature, generator=rng(i))[0, 1])
            for i in range(3000)
        ]
        assert np.mean(kept) == pytest.approx(expected, abs=0.03)
