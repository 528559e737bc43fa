"""Draws by the native library, through Python: bits, laws and threads."""

import numpy as np
import pytest
import torch

from hebbline.train.dynamics.sampling import generator_for, race_keys, smallest
from hebbline.train.native import draws
from hebbline.train.threads import all_threads, native_threads, one_thread


def keys(count, *, seed=1, place=0, temperature=1.0, threads=1, excluded=None):
    scores = np.random.default_rng(0).random(count).astype(np.float32)
    return draws.race_keys(scores, excluded, seed=seed, place=place, temperature=temperature, threads=threads)


def test_no_instruction_set_and_no_number_of_threads_changes_a_bit(monkeypatch):
    expected = {temperature: keys(70_001, temperature=temperature) for temperature in (1.0, 1.3)}
    for isa in ("scalar", "avx2", "avx512"):
        monkeypatch.setenv("HEBBLINE_ISA", isa)
        try:
            keys(1)
        except MemoryError:  # not on this processor
            continue
        for temperature, threads in ((1.0, 1), (1.0, 3), (1.3, 2)):
            np.testing.assert_array_equal(keys(70_001, temperature=temperature, threads=threads), expected[temperature])


def test_keys_are_exponential_over_scores():
    found = keys(200_000)
    scores = np.random.default_rng(0).random(200_000).astype(np.float32)
    times = found * scores
    quantiles = [0.01, 0.1, 0.5, 0.9, 0.99]
    np.testing.assert_allclose(np.quantile(times, quantiles), -np.log1p(-np.array(quantiles)), rtol=0.05)
    assert abs(np.corrcoef(times[:-1], times[1:])[0, 1]) < 0.01


def test_a_stream_goes_on_and_another_seed_is_another_stream():
    assert not np.array_equal(keys(100), keys(100, seed=2))
    generator = generator_for("test")
    first, second = race_keys(torch.ones(7), generator), race_keys(torch.ones(7), generator)
    assert not (first == second).any()
    assert torch.equal(race_keys(torch.ones(7), generator_for("test")), first)


def test_only_scores_above_zero_that_are_not_excluded_are_drawn():
    scores = np.array([0, 1, -1, np.nan, 1e-42, 2], np.float32)
    for temperature in (1.0, 0.5):
        found = draws.race_keys(scores, np.arange(6) == 5, seed=0, place=0, temperature=temperature, threads=1)
        assert np.isfinite(found[1]) and not np.isfinite(found[[0, 2, 3, 5]]).any()
    assert np.isfinite(found[4]), "the logarithm of a subnormal number is one"


@pytest.mark.parametrize("count", [0, 1, 500, 40_000, 99_999])
def test_the_smallest_are_those_of_a_sort(count):
    values = np.random.default_rng(3).integers(0, 5000, 100_000).astype(np.float32)
    expected = np.zeros(len(values), np.bool_)
    expected[np.argsort(values, kind="stable")[:count]] = True
    np.testing.assert_array_equal(draws.smallest(values, count, threads=2), expected)
    assert torch.equal(smallest(torch.from_numpy(values), count), torch.from_numpy(expected))


def test_torch_sleeps_while_the_native_library_works():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert (torch.get_num_threads(), native_threads()) == (1, 3)
            with all_threads():
                assert torch.get_num_threads() == 3
            with pytest.raises(ZeroDivisionError), one_thread():
                1 / 0  # noqa: B018
            assert (torch.get_num_threads(), native_threads()) == (1, 3)
        assert torch.get_num_threads() == native_threads() == 3
    finally:
        torch.set_num_threads(before)
