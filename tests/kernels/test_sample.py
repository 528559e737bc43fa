"""The native kernels of drawing against numpy, on every instruction set that is here, and at any length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.kernels import sampling


@pytest.fixture(params=["native", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(sampling, "_open", lambda: None)
    else:
        assert sampling._open() is not None
    return request.param


def make_logits(size, spread=5.0):
    logits = (spread * np.random.default_rng(size).standard_normal(size)).astype(np.float32)
    logits[size // 2] = -np.inf if size > 1 else 0
    return logits


def expected_weights(logits, temperature):
    """In float64; and how far rounding may take them, relatively."""
    exponents = (logits.astype(np.float64) - float(logits.max())) / temperature
    return np.exp(exponents), 1e-15 * (1 + np.abs(np.maximum(exponents, -1e3)))


@pytest.mark.parametrize("size", [1, 5, 16, 1023, 1024, 1025, 50_001])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 7.0])
def test_weights_are_those_of_float64(way, size, temperature):
    logits = make_logits(size)
    expected, error = expected_weights(logits, temperature)
    weights = sampling.weigh(logits, logits.max(), temperature)
    assert np.all(np.abs(weights - expected) <= error * expected + 1e-300)
    assert weights[np.argmax(logits)] == 1


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-6, 1e6, 1e300])
def test_weights_at_extreme_temperatures(way, temperature):
    logits = np.array([0, -1, -1e30, -np.inf, 0, -1e-30, *np.full(20, -3)], np.float32)
    with np.errstate(over="ignore"):
        expected, _ = expected_weights(logits, temperature)
    np.testing.assert_allclose(sampling.weigh(logits, logits.max(), temperature), expected, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 1033, 50_001])
def test_sums_are_those_of_numpy(way, size):
    """Of all, and of those that reach an edge, at any length."""
    logits = np.round(make_logits(size, 2.0))
    expected, _ = expected_weights(logits, 0.8)
    starts = np.arange(0, size, sampling.BLOCK)
    for edge in (-np.inf, -3.0, 0.0, 0.5, 30.0):
        sums, above = sampling.add_up(logits, logits.max(), 0.8, edge)
        np.testing.assert_allclose(sums, np.add.reduceat(expected, starts), rtol=1e-13)
        np.testing.assert_allclose(above, np.add.reduceat(np.where(logits >= edge, expected, 0), starts), rtol=1e-13)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1025, 50_001])
def test_find_gives_all_between_two_bounds_both_included(way, size):
    logits = np.round(make_logits(size, 3.0))
    for low, high in ((-20, 20), (0, np.inf), (-np.inf, 1), (2, 2), (3, 2), (30, 40), (-np.inf, np.inf)):
        expected = np.flatnonzero((logits >= low) & (logits <= high))
        np.testing.assert_array_equal(sampling.find(logits, low, high, max(1, len(expected))), expected)
        if len(expected) > 1:
            assert sampling.find(logits, low, high, len(expected) - 1) is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]) | st.floats(1e-6, 1.0), min_size=1, max_size=60),
    st.floats(0, 1.2),
    st.sampled_from([0.0, 0.5]),
)
@pytest.mark.parametrize("native", [True, False])
def test_the_largest_that_are_needed_are_kept(native, weights, share, before):
    weights = np.array(weights)
    target = before + max(share * weights.sum(), 1e-9)
    kept = (sampling.keep_largest if native else sampling._keep_largest)(weights, before, target)
    order = np.lexsort((np.arange(len(weights)), -weights))
    cumulative = before + np.cumsum(weights[order])
    if np.abs(cumulative / target - 1).min() < 1e-12:
        return  # rounding decides
    count = min(int(np.searchsorted(cumulative, target)) + 1, len(weights))
    expected = np.isin(np.arange(len(weights)), order[:count])
    # Where all do not suffice, those without weight are nobody's loss.
    np.testing.assert_array_equal(kept & (weights > 0), expected & (weights > 0))


def test_the_largest_of_many(way):
    weights = np.random.default_rng(0).standard_exponential(20_000)
    kept = sampling.keep_largest(weights, 10.0, 10 + 0.3 * weights.sum())
    assert weights[kept].min() > weights[~kept].max()
    assert weights[kept].sum() >= 0.3 * weights.sum() > weights[kept].sum() - weights[kept].min()


def test_the_ways_of_both_agree_on_a_row_of_a_vocabulary(monkeypatch):
    logits = (3 * np.random.default_rng(1).standard_normal(128_256)).astype(np.float32)
    native = sampling.weigh(logits, logits.max(), 0.8)
    monkeypatch.setattr(sampling, "_open", lambda: None)
    np.testing.assert_allclose(native, sampling.weigh(logits, logits.max(), 0.8), rtol=1e-14)
