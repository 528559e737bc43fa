"""Guessed tokens change nothing but the number of steps."""

import itertools
import time
import urllib.request

import numpy as np
import pytest
from tiny import make_llama

from hebbline.artifacts import InputError
from hebbline.export import export_model
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.tokenizer import load_tokenizer
from hebbline.serve.client import Client
from hebbline.serve.draft_model import DraftModel, check_draft, open_draft
from hebbline.serve.drafts import PRIOR, Acceptance, PromptLookup
from hebbline.serve.local import load
from hebbline.serve.openai.metrics import parse_samples
from hebbline.serve.pace import Pace
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.scheduler import Scheduler
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings
from hebbline.train.save import save_model_directory


def test_what_followed_the_longest_run_last_is_proposed():
    drafts = PromptLookup()
    assert drafts.propose([1, 2, 3], 4) == []
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2, 9, 7, 1, 2], 4) == [9, 7, 1, 2]  # the latest
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2, 9, 7, 1, 2, 3], 2) == [4, 5]  # the longest
    assert drafts.propose([1, 2, 3, 4, 5, 1, 2, 9, 7, 1, 2, 3], 1) == [4]


def test_a_run_of_one_token_proposes_itself():
    drafts, tokens = PromptLookup(), [5, 5]
    for _ in range(6):
        drafts.propose(tokens, 4)
        tokens.append(5)
    assert drafts.propose(tokens, 4) == [5]  # all that is known to have followed


def test_failures_stop_the_guessing_and_time_brings_it_back():
    drafts, pace = Acceptance(), Pace(256)
    assert not pace.draft_pays(drafts.rate, 1), "a step without guesses is measured first"
    pace.record(1, 0, 0.01)
    assert pace.draft_pays(drafts.rate, 1) and not pace.draft_pays(drafts.rate, 2)  # before their cost is known
    pace.record(1, 0, 0.01 + 4 * 0.002, drafts=4)
    assert pace.draft_pays(drafts.rate, 1)
    assert not pace.draft_pays(drafts.rate, 8)
    for _ in range(10):
        drafts.record(4, 0)
    assert not pace.draft_pays(drafts.rate, 1)
    for _ in range(100):
        drafts.record(0, 0)
    assert pace.draft_pays(drafts.rate, 1)
    assert drafts.rate < PRIOR


@pytest.fixture
def start(byte_tokenizer):
    started = []

    def make(runner, tokenizer=byte_tokenizer, eos=(), **options):
        started.append(Scheduler(runner, tokenizer, eos, **options))
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close()


@pytest.fixture
def make_loop_runner(make_paged_runner):
    """A runner whose texts repeat: the next token depends on the last one, and now and then on all before."""

    class LoopRunner(make_paged_runner):
        def _paged_logits(self, table, length):
            held = self.cache[list(table)].reshape(-1)[:length]
            assert (held >= 0).all()
            seed = held if held.sum() % 11 == 0 else held[-1:]
            logits = np.random.default_rng(seed + 1).standard_normal(self.vocab_size)
            logits[(3 * held[-1] + 1) % 5] += 6
            return logits

    return LoopRunner


SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 5},
    "penalized": {"temperature": 0.8, "seed": 6, "frequency_penalty": 0.1, "repetition_penalty": 1.1},
    "structured": {"regex": "(abcd){25}", "temperature": 0.5, "seed": 7},
    "stopped": {"stop_token_ids": (2,), "temperature": 1.0, "seed": 8, "min_tokens": 20},
}


@pytest.mark.parametrize("kind", SAMPLING)
def test_the_same_comes_out_in_fewer_steps(start, make_loop_runner, submit, kind):
    options = {"max_tokens": 80, "return_log_probs": True, **SAMPLING[kind]}
    plain, guessing = make_loop_runner(), make_loop_runner()
    prompts = [[1, 2, 3, 4], [2, 2]]
    expected = [submit(start(plain, draft_tokens=0), prompt, **options).chunks() for prompt in prompts]
    scheduler = start(guessing, draft_tokens=4)
    scheduler._pace.draft_pays = lambda *arguments: True
    assert [submit(scheduler, prompt, **options).chunks() for prompt in prompts] == expected
    totals = scheduler.snapshot().totals
    assert totals["draft_tokens"] >= totals["draft_tokens_accepted"] > 0
    assert len(guessing.steps) < len(plain.steps)
    together = [submit(scheduler, prompt, **options) for prompt in prompts * 3]
    assert [receiver.chunks() for receiver in together] == expected * 3
    assert scheduler._batch.pool.available == scheduler._batch.pool.size


def test_guesses_are_left_out_where_blocks_are_short(start, make_loop_runner, submit):
    options = {"max_tokens": 60}
    prompts = [[n, 1, 2] for n in range(5)]
    expected = [submit(start(make_loop_runner(), draft_tokens=0), prompt, **options).tokens() for prompt in prompts]
    scheduler = start(make_loop_runner(num_blocks=8))
    scheduler._pace.draft_pays = lambda *arguments: True
    together = [submit(scheduler, prompt, **options) for prompt in prompts]
    assert [receiver.tokens() for receiver in together] == expected


@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_on_the_real_runner(start, tiny_artifact, submit, cache_bytes):
    """A random model soon repeats itself; its greedy text is the same with guesses, and so is a sampled one."""
    tokenizer = load_tokenizer(tiny_artifact)
    prompt = np.random.default_rng(3).integers(0, 300, 20).tolist()

    def run(draft_tokens, **options):
        runner = open_onnx(tiny_artifact, 2, threads=1, graph="kernels", cache_bytes=cache_bytes)
        scheduler = start(runner, tokenizer, draft_tokens=draft_tokens)
        scheduler._pace.draft_pays = lambda *arguments: True
        tokens = submit(scheduler, prompt, max_tokens=40, **options).tokens()
        return tokens, scheduler.snapshot().totals.get("draft_tokens_accepted", 0)

    accepted = []
    for options in ({}, {"temperature": 0.4, "seed": 1}):
        expected, none = run(0, **options)
        found, right = run(4, **options)
        assert (found, none) == (expected, 0)
        accepted.append(right)
    assert accepted[0] > 0


@pytest.fixture
def make_draft(make_loop_runner):
    """A draft whose logits are the model's and noise: it is right now and then. It checks what its slots hold."""

    class Draft(make_loop_runner):
        noise = 1.0

        def __post_init__(self):
            self.cache = np.full((self.slots, self.context_length), -1)

        def step(self, segments):
            rows = []
            self.steps.append([len(s.ids_S) for s in segments])
            for s in segments:
                assert (self.cache[s.slot, : s.past] >= 0).all()
                self.cache[s.slot, s.past : s.past + len(s.ids_S)] = s.ids_S
                held = self.cache[s.slot]
                rows += [self._noisy(held[: s.past + row + 1]) for row in s.rows_N]
            return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

        def _noisy(self, held):
            seed = held if held.sum() % 11 == 0 else held[-1:]
            logits = np.random.default_rng(seed + 1).standard_normal(self.vocab_size)
            logits[(3 * held[-1] + 1) % 5] += 6
            return logits + self.noise * np.random.default_rng([*held, 7]).standard_normal(self.vocab_size)

    return Draft


def with_draft(start, runner, draft, **options):
    scheduler = start(runner, draft=DraftModel(draft), **options)
    scheduler._pace.draft_pays = lambda *arguments: True
    scheduler._looked_up = lambda *arguments: ()
    return scheduler


@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("kind", SAMPLING)
def test_a_draft_model_changes_nothing_but_the_number_of_steps(
    start, make_loop_runner, make_draft, submit, kind, noise
):
    options = {"max_tokens": 60, "return_log_probs": True, **SAMPLING[kind]}
    plain, guessing, draft = make_loop_runner(), make_loop_runner(), make_draft()
    draft.noise = noise
    prompts = [[1, 2, 3, 4], list(range(40)), [7]]
    expected = [submit(start(plain, draft_tokens=0), prompt, **options).chunks() for prompt in prompts]
    scheduler = with_draft(start, guessing, draft)
    assert [submit(scheduler, prompt, **options).chunks() for prompt in prompts] == expected
    together = [submit(scheduler, prompt, **options) for prompt in prompts * 2]
    assert [receiver.chunks() for receiver in together] == expected * 2
    totals = scheduler.snapshot().totals
    assert totals["draft_model_tokens"] == totals["draft_tokens"] > 0
    if noise == 0:
        assert totals["draft_model_tokens_accepted"] == totals["draft_model_tokens"], "the same model is always right"
        assert len(guessing.steps) < 2 * len(plain.steps)
    assert scheduler._batch.pool.available == scheduler._batch.pool.size


def test_a_draft_guesses_what_will_be_drawn_at_any_temperature(start, make_loop_runner, make_draft, submit):
    """With the random numbers that the model's tokens are drawn with, a draft that is near is right more often than one
    whose guess is its likeliest token could be."""
    draft = make_draft()
    draft.noise = 0.05
    scheduler = with_draft(start, make_loop_runner(), draft)
    for seed in range(6):
        submit(scheduler, [1, 2, 3], max_tokens=60, temperature=3.0, seed=seed).chunks()
    totals = scheduler.snapshot().totals
    assert totals["draft_model_tokens_accepted"] > 0.7 * totals["draft_model_tokens"]


def test_a_long_prompt_is_read_by_the_draft_in_pieces(start, make_loop_runner, make_draft, submit):
    draft = make_draft()
    draft.noise = 0.0
    scheduler = with_draft(start, make_loop_runner(), draft, prompt_tokens=16)
    expected = submit(start(make_loop_runner(), draft_tokens=0), [5] * 70, max_tokens=40).tokens()
    assert submit(scheduler, [5] * 70, max_tokens=40).tokens() == expected
    assert max(sum(step) for step in draft.steps) <= 16
    assert scheduler.snapshot().totals["draft_model_tokens_accepted"] > 0


def test_a_draft_with_a_shorter_context_stops_guessing(start, make_loop_runner, make_draft, submit):
    draft = make_draft(context_length=32)
    scheduler = with_draft(start, make_loop_runner(), draft)
    expected = submit(start(make_loop_runner(), draft_tokens=0), [1, 2], max_tokens=80).tokens()
    assert submit(scheduler, [1, 2], max_tokens=80).tokens() == expected


def test_a_draft_that_fails_is_left_out(start, make_loop_runner, make_draft, submit, caplog):
    draft = make_draft()
    scheduler = with_draft(start, make_loop_runner(), draft)
    expected = submit(start(make_loop_runner(), draft_tokens=0), [1, 2], max_tokens=40).tokens()
    steps = draft.step
    draft.step = lambda segments: steps(segments) if len(draft.steps) < 9 else 1 / 0
    assert submit(scheduler, [1, 2], max_tokens=40).tokens() == expected
    assert "the draft model has failed" in caplog.text
    assert submit(scheduler, [1, 2], max_tokens=40).tokens() == expected


def test_a_draft_that_costs_more_than_it_saves_is_not_asked():
    pace = Pace(256)
    pace.record(1, 0, 0.01)
    pace.record(1, 0, 0.01 + 4 * 0.0005, drafts=4)
    assert pace.draft_pays(0.6, 1, 0.002)
    assert not pace.draft_pays(0.6, 1, 0.006)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory, tokenizer, tiny_model_directory):
    """Artifacts: another model of the vocabulary, and one with fewer tokens."""
    directory = tmp_path_factory.mktemp("drafts")
    for name, seed, size in (("good", 3, len(tokenizer)), ("small", 3, len(tokenizer) + 8)):
        model = make_llama(size, seed, num_hidden_layers=1)
        save_model_directory(directory / f"{name}-model", model, tokenizer, {}, method="static")
        export_model(directory / f"{name}-model", directory / name)
    return directory


def test_a_draft_on_the_real_runner(start, tiny_artifact, drafts, submit):
    tokenizer = load_tokenizer(tiny_artifact)
    prompt = np.random.default_rng(3).integers(0, 300, 40).tolist()

    def run(draft, **options):
        runner = open_onnx(tiny_artifact, 2, threads=1, graph="kernels", cache_bytes=0)
        opened = None if draft is None else open_draft(draft, runner, tokenizer, 1)
        scheduler = start(runner, tokenizer, draft_tokens=4 if draft else 0, draft=opened)
        scheduler._pace.draft_pays = lambda *arguments: True
        scheduler._looked_up = lambda *arguments: ()
        tokens = submit(scheduler, prompt, max_tokens=40, **options).tokens()
        return tokens, scheduler.snapshot().totals

    for options in ({}, {"temperature": 0.7, "seed": 1}):
        expected, _ = run(None, **options)
        other, _ = run(drafts / "good", **options)
        same, totals = run(tiny_artifact, **options)
        assert other == same == expected
        assert totals["draft_model_tokens_accepted"] == totals["draft_model_tokens"] > 20


def test_a_draft_of_another_vocabulary_is_refused(tiny_artifact, drafts):
    check_draft(tiny_artifact, drafts / "good")
    with pytest.raises(InputError, match=r"vocabulary of \d+ tokens, the model one of \d+"):
        check_draft(tiny_artifact, drafts / "small")
    runner = open_onnx(tiny_artifact, 1, threads=1, graph="portable")
    assert open_draft(drafts / "good", runner, load_tokenizer(tiny_artifact)) is None, "it cannot check guesses"


def test_a_draft_with_other_tokens_is_refused(tiny_artifact, drafts):
    runner = open_onnx(tiny_artifact, 1, threads=1, graph="kernels")
    tokenizer = load_tokenizer(tiny_artifact)
    tokenizer.add_tokens(["another"])
    with pytest.raises(InputError, match="has other tokens than the model"):
        open_draft(drafts / "good", runner, tokenizer)


def test_a_server_guesses_by_a_draft_and_counts(tiny_artifact, drafts, tmp_path):
    with pytest.raises(InputError, match="a draft has the vocabulary of its model"):
        fill_repository(tiny_artifact, tmp_path / "repository", Settings(), draft=drafts / "small")
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=2, threads=1), draft=drafts / "good")
    with TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server:
        server.wait_ready()
        with Client(server.grpc_url, 60) as client, load(tiny_artifact, threads=1) as model:
            deadline = time.monotonic() + 120
            for number in itertools.count():
                prompt = f"{number} the quick"
                fields = {"max_tokens": 30, "temperature": 1.0, "seed": number}  # so that little repeats itself
                assert client.complete(prompt, SamplingParameters(**fields)).text == model.generate(prompt, **fields)
                # Whether a guess pays is decided by times that are measured, which other work disturbs.
                if number >= 4 and guessed(server):
                    break
                assert time.monotonic() < deadline
        draft = (tmp_path / "repository" / "llm" / "1" / "draft").resolve()
        assert f"the draft {draft} guesses tokens" in server.log.read_text()


def guessed(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as response:
        samples = parse_samples(response.read().decode(), "hebbline_draft_model")
    return samples.get("hebbline_draft_model_tokens_total", 0) > 0
