"""The native kernels of drawing against numpy, on every instruction set that is here, and at any length."""

import numpy as np
import pytest

from hebbline.kernels import sampling


@pytest.fixture(params=["native", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(sampling, "_open", lambda: None)
    else:
        assert sampling._open() is not None
    return request.param


@pytest.mark.parametrize("size", [1, 5, 16, 1023, 1024, 1025, 50_001])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 7.0])
def test_weights_are_those_of_float64(way, size, temperature):
    logits = (5 * np.random.default_rng(size).standard_normal(size)).astype(np.float32)
    logits[size // 2] = -np.inf if size > 1 else 0
    peak = logits.max()
    expected = np.exp((logits.astype(np.float64) - float(peak)) / temperature)
    np.testing.assert_allclose(sampling.weigh_exactly(logits, peak, temperature), expected, rtol=1e-14, atol=1e-300)
    weights, total = sampling.weigh(logits, peak, np.float32(1 / temperature))
    np.testing.assert_allclose(weights, expected, rtol=3e-5, atol=1e-37)
    assert total == pytest.approx(expected.sum(), rel=3e-5)


@pytest.mark.parametrize("size", [1, 16, 1025, 50_001])
def test_select_finds_all_that_reach_the_edge_and_the_weight_of_the_others(way, size):
    generator = np.random.default_rng(size)
    logits = np.round(3 * generator.standard_normal(size)).astype(np.float32)
    weights = generator.random(size, np.float32)
    for edge in (-20, 0, 3, 6, 30):
        ids, rest = sampling.select(logits, weights, np.float32(edge), size)
        np.testing.assert_array_equal(ids, np.flatnonzero(logits >= edge))
        assert rest == pytest.approx(weights[logits < edge].sum(dtype=np.float64), rel=1e-5, abs=1e-9)
        reaching = int((logits >= edge).sum())
        if reaching:
            assert sampling.select(logits, weights, np.float32(edge), reaching)[0] is not None
            assert sampling.select(logits, weights, np.float32(edge), reaching - 1)[0] is None


@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 1033, 50_001])
def test_sums_and_splits_are_those_of_numpy(way, size):
    """Weights of 0, of both bounds and beside them, at any length."""
    generator = np.random.default_rng(size)
    weights = np.round(generator.random(size) * 8) / 8
    starts = np.arange(0, size, sampling.BLOCK)
    for least in (0.0, 0.25, 1.0, 2.0):
        expected = np.add.reduceat(np.where(weights >= least, weights, 0), starts)
        np.testing.assert_allclose(sampling.add_up(weights, least), expected, rtol=1e-13)
    for low, high in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.5), (0.5, 0.25), (2.0, 3.0), (0.3, 0.31)):
        kept, sums, ids = sampling.split(weights, low, high)
        np.testing.assert_array_equal(kept, weights > high)
        np.testing.assert_array_equal(ids, np.flatnonzero((weights >= low) & (weights <= high)))
        np.testing.assert_allclose(sums, np.add.reduceat(np.where(weights > high, weights, 0), starts), rtol=1e-13)


def test_the_ways_of_both_agree_on_a_row_of_a_vocabulary(monkeypatch):
    logits = (3 * np.random.default_rng(1).standard_normal(128_256)).astype(np.float32)
    native = sampling.weigh_exactly(logits, logits.max(), 0.8)
    monkeypatch.setattr(sampling, "_open", lambda: None)
    np.testing.assert_allclose(native, sampling.weigh_exactly(logits, logits.max(), 0.8), rtol=1e-14)
