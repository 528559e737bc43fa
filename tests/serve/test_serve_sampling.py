import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebbline.artifacts import CheckError, InputError
from hebbline.serve.sampling import Sampler, SamplingParameters, filtered_probabilities, log_probability


def draws(logits, parameters, count):
    sampler = Sampler(parameters)
    return [sampler.sample(logits) for _ in range(count)]


def test_default_is_greedy_with_the_lowest_id_among_equals():
    logits = np.array([0.0, 2.0, 5.0, 5.0], np.float32)
    assert draws(logits, SamplingParameters(), 5) == [2] * 5


def test_draws_follow_the_distribution():
    logits = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    parameters = SamplingParameters(temperature=0.7, seed=1)
    expected = filtered_probabilities(logits, parameters)
    counts = np.bincount(draws(logits, parameters, 20_000), minlength=12)
    chi_squared = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom, 0.1%


def test_probabilities_are_the_softmax_at_the_temperature():
    logits = np.array([1.0, 2.0, 4.0], np.float32)
    expected = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum()
    np.testing.assert_allclose(filtered_probabilities(logits, SamplingParameters(temperature=2)), expected, rtol=1e-6)


def test_one_seed_is_one_sequence_and_another_is_another():
    logits = np.zeros(1000, np.float32)
    first = draws(logits, SamplingParameters(temperature=1, seed=5), 20)
    assert first == draws(logits, SamplingParameters(temperature=1, seed=5), 20)
    assert first != draws(logits, SamplingParameters(temperature=1, seed=6), 20)
    assert draws(logits, SamplingParameters(temperature=1), 20) != draws(logits, SamplingParameters(temperature=1), 20)


logits_arrays = st.lists(st.integers(-3, 3), min_size=1, max_size=20).map(lambda values: np.array(values, np.float32))


@given(logits_arrays, st.integers(1, 25))
def test_top_k_keeps_exactly_the_k_best(logits, k):
    kept = np.flatnonzero(filtered_probabilities(logits, SamplingParameters(temperature=1, top_k=k)))
    expected = np.argsort(-logits, kind="stable")[:k]
    assert kept.tolist() == sorted(expected.tolist())


@given(logits_arrays, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, top_p):
    full = filtered_probabilities(logits, SamplingParameters(temperature=1))
    kept = np.flatnonzero(filtered_probabilities(logits, SamplingParameters(temperature=1, top_p=top_p)))
    assert full[kept].sum() >= top_p - 1e-9
    assert full[kept].sum() - full[kept].min() < top_p + 1e-9
    assert set(kept) == set(np.argsort(-logits, kind="stable")[: len(kept)])


def test_top_p_counts_within_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    probabilities = filtered_probabilities(logits, SamplingParameters(temperature=1, top_k=2, top_p=0.5))
    np.testing.assert_allclose(probabilities, [1, 0, 0, 0])


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


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", b"\xff", '{"max_token": 3}', '{"temperature": NaN}', "[" * 100_000]
)
def test_wrong_json_is_refused(text):
    with pytest.raises(InputError):
        SamplingParameters.from_json(text)


def test_json_round_trip():
    values = {"max_tokens": 3, "temperature": 1, "top_k": 4, "top_p": 0.5, "seed": 2**64 - 1, "stop": ["a", "b"]}
    expected = SamplingParameters(3, 1.0, 4, 0.5, 2**64 - 1, ("a", "b"))
    assert SamplingParameters.from_json(json.dumps(values)) == expected
    assert SamplingParameters(stop="one").stop == ("one",)
