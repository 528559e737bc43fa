"""`hebbline bench serve`, on a model of seconds, and its fuzzing."""

import asyncio
import json
import math
import random
import time

import numpy as np
import pytest

from hebbline.artifacts import InputError
from hebbline.benchmarks.serving import ServingCase
from hebbline.benchmarks.serving_fuzz import grpc_request, http_body, openai_request, run_fuzz
from hebbline.benchmarks.serving_load import make_prompts, percentile, run_load
from hebbline.cli import main


def test_every_row_has_all_figures(tiny_artifact, capsys):
    options = ["--streams", "2", "--lengths", "4,20", "--shared", "16", "--new-tokens", "60", "--workloads", "shared"]
    options += ["--requests", "20"]
    assert main(["bench", "serve", str(tiny_artifact), *options, "--fronts", "grpc,openai", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["front"], row["workload"], row["streams"]) for row in rows] == [
        ("grpc", "shared", 2),
        ("openai", "shared", 2),
    ]
    for row in rows:
        assert row["tokens"] == 60 * 20 * row["streams"] and row["tokens_per_second"] > 0
        assert 0 < row["first_p50"] <= row["first_p99"] and 0 <= row["gap_p50"] <= row["gap_p99"]
        assert set(row["processor_ms"]) == {"triton", "model", "client", *(["gateway"] * (row["front"] == "openai"))}
        assert row["runner_ms"] > 0 and row["dense_ms"] > 0
        assert 0 < row["steps_ms"] < sum(row["processor_ms"].values()) * 10 and row["stack_share"] is not None


def test_percentiles():
    assert [percentile([3, 1, 2], share) for share in (0.3, 0.5, 0.99)] == [1, 2, 3]
    assert percentile(list(range(1, 101)), 0.99) == 99 and math.isnan(percentile([], 0.5))


def test_rates_are_of_the_time_in_which_all_streams_are_open():
    """A long request beside three short ones, after which it runs alone."""
    ended_at = []

    async def tokens(prompt):
        for _ in range(prompt[0]):
            await asyncio.sleep(0.02)
            yield 1

    seen = asyncio.run(run_load(tokens, [[30], [3], [3], [3]], 2, lambda: ended_at.append(time.perf_counter())))
    assert seen.tokens == 39 and len(ended_at) == 1
    assert 16 <= seen.full_tokens <= 20 and seen.full_seconds >= 9 * 0.02
    assert seen.tokens_per_second == seen.full_tokens / seen.full_seconds


def test_prompts_share_what_they_are_told_to():
    prompts = make_prompts(4, (2, 5), 3, 100, np.random.default_rng(0))
    assert [len(prompt) for prompt in prompts] == [5, 8, 5, 8]
    assert len({tuple(prompt[:3]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 4


@pytest.mark.parametrize(
    "options", [{"streams": ()}, {"lengths": (0,)}, {"new_tokens": 0}, {"fronts": ("smtp",)}, {"workloads": ("all",)}]
)
def test_impossible_cases_are_named(tmp_path, options):
    with pytest.raises(InputError, match=next(iter(options))):
        ServingCase(tmp_path, **options)


def test_prompts_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match="make up to 576 tokens, more than the context of 128"):
        ServingCase(tmp_path).check_fits(128)


def test_nonsense_is_answered_and_the_same_from_the_same_seed(tiny_artifact, tmp_path):
    outcome = run_fuzz(tiny_artifact, 90, 7, tmp_path)
    assert not outcome.wrong and not outcome.restarts and outcome.answered.total() == 90
    assert {front for front, _ in outcome.answered} == {"grpc", "http", "openai"}
    for make in (http_body, openai_request, lambda generator: grpc_request(generator).SerializeToString()):
        assert make(random.Random(3)) == make(random.Random(3))
