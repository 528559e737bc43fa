"""What may be drawn is, to the last token, what sorting the whole vocabulary in float64 says."""

import math
from itertools import product

import numpy as np
import pytest
from drawn import probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.kernels.sampling import BLOCK
from hebbline.serve.distribution import _nucleus
from hebbline.serve.draws import FewTokens, ManyTokens
from hebbline.serve.parameters import SamplingParameters


def sorted_reference(logits_V, parameters):
    """The probabilities by definition; and how near top-p's sum comes to an edge, relatively: nearer than rounding, the
    edge is a matter of taste."""
    with np.errstate(over="ignore"):
        shifted = (logits_V.astype(np.float64) - logits_V.max()) / parameters.temperature
    weights = np.exp(shifted)
    weights[weights < parameters.min_p] = 0
    if parameters.top_k:
        order = np.lexsort((np.arange(len(shifted)), -np.where(weights > 0, shifted, -np.inf)))
        weights[order[parameters.top_k :]] = 0
    nearest = 1.0
    if parameters.top_p < 1:
        order = np.lexsort((np.arange(len(weights)), -weights))
        cumulative = np.cumsum(weights[order].astype(np.longdouble))
        target = parameters.top_p * cumulative[-1]
        nearest = float(np.abs(cumulative / target - 1).min())
        weights[order[int(np.searchsorted(cumulative, target)) + 1 :]] = 0
    return weights / weights.sum(), nearest


def assert_as_sorted(logits_V, **fields):
    parameters = SamplingParameters(**{"temperature": 1.0} | fields)
    expected, nearest = sorted_reference(logits_V, parameters)
    if 0 < nearest < 1e-11:
        return
    result = probabilities(logits_V, parameters)
    np.testing.assert_array_equal(np.flatnonzero(result), np.flatnonzero(expected), err_msg=str(parameters))
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def rows(size):
    """Logits of every kind that there is."""
    generator = np.random.default_rng(size)
    normal = generator.standard_normal(size)
    peaked = 3 * normal
    peaked[generator.integers(0, size, 30)] += 12
    zipf = -1.2 * np.log(1 + generator.permutation(size))
    masked = np.where(generator.random(size) < 0.9, -np.inf, normal)
    masked[0] = 0.5
    kinds = {
        "flat": normal,
        "spread": 3 * normal,
        "peaked": peaked,
        "zipf": zipf,
        "steps": np.round(normal * 2) / 2,
        "two": np.where(generator.random(size) < 0.01, 3.0, 1.0),
        "equal": np.zeros(size),
        "masked": masked,
        "far": np.where(np.arange(size) == 7, 0, -1e4),
        "tiny differences": 1.0 - 1e-30 * np.arange(size),
        "huge": 1e38 * normal / np.abs(normal).max(),
    }
    return {kind: logits.astype(np.float32) for kind, logits in kinds.items()}


FILTERS = [
    {"top_p": top_p, "top_k": top_k, "min_p": min_p}
    for top_p, top_k, min_p in product((1.0, 0.999, 0.95, 0.9, 0.5, 0.01), (0, 1, 50, 3000), (0.0, 0.05, 1.0))
]


@pytest.mark.parametrize(("size", "temperature"), [*product([100, 5003], [0.05, 0.8, 1.0, 30.0]), (49_152, 0.8)])
def test_every_filter_of_every_row_is_as_sorted(size, temperature):
    for logits in rows(size).values():
        for filters in FILTERS:
            assert_as_sorted(logits, temperature=temperature, **filters)


@pytest.mark.parametrize("temperature", [1e-300, 1e-35, 1e35, 1e300])
def test_temperatures_out_of_float32_are_as_sorted(temperature):
    for logits in rows(5003).values():
        for filters in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
            assert_as_sorted(logits, temperature=temperature, **filters)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-4, 4) | st.just(-math.inf), min_size=1, max_size=40),
    st.floats(0.01, 1),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_ties_in_small_rows_are_as_sorted(values, top_p, top_k, min_p, temperature):
    logits = np.array([*values, 0], np.float32)
    assert_as_sorted(logits, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.3, 4), st.floats(0.05, 0.99), st.integers(0, 400))
def test_random_rows_of_a_vocabulary_are_as_sorted(seed, spread, top_p, peaks):
    generator = np.random.default_rng(seed)
    logits = (spread * generator.standard_normal(9000)).astype(np.float32)
    logits[generator.integers(0, 9000, peaks)] += np.float32(8)
    assert_as_sorted(logits, top_p=top_p)


def test_both_ways_to_a_nucleus_are_taken():
    """Else the comparisons above would have compared less than they seem to."""
    for size in (49_152, 128_256):
        kinds = {kind: type(_nucleus(row, row.max(), 0.8, 0.9)) for kind, row in rows(size).items()}
        assert all(kinds[kind] is FewTokens for kind in ("peaked", "spread", "zipf", "far")), kinds
        assert kinds["flat"] is ManyTokens
        assert kinds["equal"] is type(None), "all are near the edge"
        assert kinds["steps"] is (ManyTokens if size < 100_000 else type(None))


def test_a_sample_seldom_misleads():
    """Where it does, a nucleus is found in the slow way: as in the comparisons, which it passes as well."""
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        logits = (generator.uniform(0.1, 4) * generator.standard_normal(50_000)).astype(np.float32)
        missed += _nucleus(logits, logits.max(), 1.0, generator.uniform(0.05, 0.99)) is None
    assert missed <= 8


def test_tokens_that_a_sample_misses_are_found():
    """Every 48th token is looked at, and never one of those that matter."""
    skewed = np.zeros(49_152)
    skewed[1 : 1 + 100 * 48 : 48] = 9
    for top_p in (0.1, 0.5, 0.9, 0.99):
        assert_as_sorted(skewed.astype(np.float32), top_p=top_p)
        assert_as_sorted(-skewed.astype(np.float32), top_p=top_p)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 1.5), st.floats(0.02, 0.99), st.sampled_from([4097, 8192, 9001, 50_000]))
def test_a_broad_nucleus_is_as_sorted(seed, spread, top_p, size):
    """On either side of the guessed edge, and with the sums by which tokens are drawn."""
    logits = (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)
    assert_as_sorted(logits, top_p=top_p)
    found = _nucleus(logits, logits.max(), 1.0, top_p)
    if found is None:
        return  # what a sample says is not certain
    kept = found.probabilities(size)
    if isinstance(found, ManyTokens):
        sums = np.add.reduceat(kept, np.arange(0, size, BLOCK))
        np.testing.assert_allclose(found.sums_B / found.sums_B.sum(), sums, rtol=1e-11, atol=1e-14)
    for uniform in (0.0, 0.3, 0.77, 1 - 2**-53):
        assert kept[found.draw(uniform)] > 0


def test_equal_logits_at_an_edge_are_kept_by_the_lowest_ids():
    logits = np.zeros(10_000, np.float32)
    for filters, kept in (({"top_k": 12}, 12), ({"top_p": 0.25}, 2500), ({"top_k": 100, "top_p": 0.5}, 50)):
        parameters = SamplingParameters(temperature=1.0, **filters)
        found = probabilities(logits, parameters)
        assert np.flatnonzero(found).tolist() == list(range(kept))


def test_min_p_comes_before_top_p():
    logits = np.log(np.array([0.5, 0.3, 0.1, 0.1], np.float32))
    parameters = SamplingParameters(temperature=1.0, min_p=0.5, top_p=0.65)
    np.testing.assert_allclose(probabilities(logits, parameters), [0.625, 0.375, 0, 0], rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=3 * BLOCK), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(weights, uniform):
    weights_V = np.array([*weights, 1], np.float64)
    expected = int(np.searchsorted(np.cumsum(weights_V), uniform * weights_V.sum(), side="right"))
    ids = np.flatnonzero(weights_V)
    assert FewTokens(ids, weights_V[ids]).draw(uniform) == expected


def many_tokens(kept_V, noise=0.0):
    """Tokens of weight 1, of which some may be drawn; the sums of blocks without any are noise."""
    sums_B = np.add.reduceat(kept_V, np.arange(0, len(kept_V), BLOCK)).astype(np.float64)
    sums_B[sums_B == 0] = noise
    logits_V = np.zeros(len(kept_V), np.float32)
    return ManyTokens(logits_V, np.float32(0), 1.0, sums_B, 0.0, np.flatnonzero(kept_V))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=4 * BLOCK), st.floats(0, 1, exclude_max=True))
def test_a_draw_by_blocks_is_the_inverse_of_the_cumulative_distribution(kept, uniform):
    kept_V = np.array([*kept, True])
    expected = int(np.searchsorted(np.cumsum(kept_V), uniform * kept_V.sum(), side="right"))
    assert many_tokens(kept_V).draw(uniform) == expected


def test_a_draw_never_leaves_the_tokens_that_have_weight():
    """The largest number below 1, times a sum that was rounded, may reach the sum itself, and a block may seem to have
    what rounding left."""
    generator = np.random.default_rng(0)
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3):
        kept_V = generator.random(size) < 0.5
        kept_V[: size // 2] = False
        kept_V[size // 2] = True
        few = FewTokens(np.arange(size), generator.random(size) * kept_V)
        for uniform in (0.0, 1 - 2**-53, *generator.random(50)):
            assert kept_V[few.draw(uniform)]
            assert kept_V[many_tokens(kept_V, noise=1e-3).draw(uniform)]
