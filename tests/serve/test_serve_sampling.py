import math

import numpy as np
import pytest
from drawn import probabilities

from hebbline.artifacts import CheckError, InputError
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.sampling import Sampler, log_probability


def draws(logits, parameters, count):
    sampler = Sampler(parameters)
    return [sampler.sample(logits) for _ in range(count)]


def test_default_is_greedy_with_the_lowest_id_among_equals():
    logits = np.array([0.0, 2.0, 5.0, 5.0], np.float32)
    assert draws(logits, SamplingParameters(), 5) == [2] * 5


def test_draws_follow_the_distribution():
    logits = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    parameters = SamplingParameters(temperature=0.7, seed=1)
    expected = probabilities(logits, parameters)
    counts = np.bincount(draws(logits, parameters, 20_000), minlength=12)
    chi_squared = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom, 0.1%


def test_probabilities_are_the_softmax_at_the_temperature():
    logits = np.array([1.0, 2.0, 4.0], np.float32)
    expected = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum()
    np.testing.assert_allclose(probabilities(logits, SamplingParameters(temperature=2)), expected, rtol=1e-6)


def test_draws_follow_the_distribution_of_a_nucleus_of_a_large_vocabulary():
    generator = np.random.default_rng(3)
    logits = generator.standard_normal(50_000).astype(np.float32)
    logits[generator.choice(50_000, 8, replace=False)] = np.linspace(13, 14, 8)
    parameters = SamplingParameters(temperature=1.0, top_p=0.6, seed=1)
    expected = probabilities(logits, parameters)
    kept = np.flatnonzero(expected)
    assert 2 <= len(kept) <= 9
    counts = np.bincount(draws(logits, parameters, 4000), minlength=50_000)
    assert counts.sum() == counts[kept].sum()
    assert (
        (counts[kept] - 4000 * expected[kept]) ** 2 / (4000 * expected[kept])
    ).sum() < 26.1  # 8 degrees at most, 0.1%


def test_one_seed_is_one_sequence_and_another_is_another():
    logits = np.zeros(1000, np.float32)
    first = draws(logits, SamplingParameters(temperature=1, seed=5), 20)
    assert first == draws(logits, SamplingParameters(temperature=1, seed=5), 20)
    assert first != draws(logits, SamplingParameters(temperature=1, seed=6), 20)
    assert draws(logits, SamplingParameters(temperature=1), 20) != draws(logits, SamplingParameters(temperature=1), 20)


def test_log_probability_is_of_the_model_itself():
    logits = np.array([1.0, 2.0, 4.0], np.float32)
    expected = math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(4)))
    assert log_probability(logits, 1) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(CheckError, match="token 1"):
        Sampler(SamplingParameters(temperature=1, seed=0)).sample(np.array([0, bad, 1], np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", 2**31),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", None),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("stop_token_ids", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["1"]),
        ("stop_token_ids", [1] * 65),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", 3),
        ("stop", [""]),
        ("stop", ["a", 3]),
        ("stop", ["a"] * 17),
        ("stop", ["a" * 1025]),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        SamplingParameters(**{field: value})


def test_values_are_kept_as_they_should_be():
    parameters = SamplingParameters(3, 1, 4, 0.5, 2**64 - 1, "one", 0.25, [7, 8])
    assert parameters.stop == ("one",)
    assert parameters.stop_token_ids == (7, 8)
    assert (parameters.temperature, parameters.seed) == (1.0, 2**64 - 1)
    assert isinstance(parameters.temperature, float)


def test_a_message_repeats_only_the_beginning_of_a_value():
    for value in ("x" * 10**6, ["x" * 10**6], [1] * 10**6, 10**400):
        with pytest.raises(InputError) as refused:
            SamplingParameters(temperature=value)
        assert len(str(refused.value)) < 200
