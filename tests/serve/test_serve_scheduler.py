import threading

import numpy as np
import pytest

from hebbline.artifacts import CheckError, InputError
from hebbline.runtime.scoring import log_probs
from hebbline.serve.generation import Chunk, GenerationRequest
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.scheduler import Scheduler
from hebbline.serve.tickets import QueueFullError, UnavailableError

EOS = 7


@pytest.fixture
def start(byte_tokenizer):
    started = []

    def make(runner, eos=(), **options):
        started.append(Scheduler(runner, byte_tokenizer, eos, **options))
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close()


@pytest.fixture
def make_mixed_runner(make_runner):
    """The runner in memory with mixed steps, and those only."""

    class MixedMemoryRunner(make_runner):
        def step(self, segments):
            assert len({segment.slot for segment in segments}) == len(segments)
            self.steps = [*getattr(self, "steps", []), [len(segment.ids_S) for segment in segments]]
            rows = [make_runner.prefill(self, s.slot, s.ids_S, s.past, s.rows_N) for s in segments]
            return np.concatenate(rows)

        def prefill(self, *arguments):
            raise AssertionError("a mixed runner is asked for mixed steps only")

        decode = prefill

    return MixedMemoryRunner


@pytest.fixture(params=["two steps", "mixed steps", "blocks"])
def make_any_runner(request, make_runner, make_mixed_runner, make_paged_runner):
    return {"two steps": make_runner, "mixed steps": make_mixed_runner, "blocks": make_paged_runner}[request.param]


@pytest.fixture
def alone(start, submit):
    return lambda runner, prompt, **sampling: submit(start(runner), prompt, **sampling).chunks()


def test_greedy_follows_the_runner(start, make_runner, alone):
    chunks = alone(make_runner(), [1, 2, 3], max_tokens=5)
    reference, ids = make_runner(), [1, 2, 3]
    for _ in range(5):
        ids.append(int(reference.prefill(0, ids, 0, [len(ids) - 1])[0].argmax()))
    assert [chunk.token_ids for chunk in chunks] == [(token,) for token in ids[3:]]
    last = chunks[-1]
    assert (last.finish_reason, last.num_input_tokens, last.num_output_tokens) == ("length", 3, 5)


def test_many_requests_together_are_each_as_alone(start, make_any_runner, make_runner, submit, alone):
    generator = np.random.default_rng(0)
    jobs = [
        (generator.integers(0, 256, generator.integers(1, 40)).tolist(), {"seed": n, "max_tokens": 1 + n % 13})
        for n in range(40)
    ]
    expected = [alone(make_runner(), prompt, temperature=1.0, **options) for prompt, options in jobs]
    runner = make_any_runner()
    scheduler = start(runner, prompt_tokens=6, draft_tokens=0)  # guesses would be longer than a token too
    receivers = [submit(scheduler, prompt, temperature=1.0, **options) for prompt, options in jobs]
    assert [receiver.chunks() for receiver in receivers] == expected
    assert max(runner.prefills) == 6
    if make_any_runner is make_runner:
        assert max(count for _, count in runner.decodes) > 1
    else:
        assert max(map(len, runner.steps)) == 4
        prompts = [[count for count in step if count > 1] for step in runner.steps]
        assert max(map(sum, prompts)) == 6
        assert max(map(len, prompts)) > 1  # several prompts share a step


def test_submitted_from_many_threads(start, make_runner, submit):
    scheduler = start(make_runner())
    expected = [submit(scheduler, [n], max_tokens=4).tokens() for n in range(16)]
    results = [None] * 16

    def work(n):
        results[n] = submit(scheduler, [n], max_tokens=4).tokens()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == expected


def test_end_of_sequence_token_ends_and_is_not_shown(start, make_runner, submit, alone):
    token_ids = [chunk.token_ids[0] for chunk in alone(make_runner(), [1], max_tokens=6)]
    chunks = submit(start(make_runner(), eos=(token_ids[3],)), [1], max_tokens=6).chunks()
    assert [token for chunk in chunks for token in chunk.token_ids] == token_ids[:3]
    assert (chunks[-1].finish_reason, chunks[-1].num_output_tokens) == ("stop", 3)


def test_a_stop_token_ends_as_the_end_of_sequence_does(start, make_runner, submit, alone):
    token_ids = [chunk.token_ids[0] for chunk in alone(make_runner(), [1], max_tokens=6)]
    chunks = submit(start(make_runner()), [1], max_tokens=6, stop_token_ids=(token_ids[3], 5)).chunks()
    assert [token for chunk in chunks for token in chunk.token_ids] == token_ids[:3]
    assert (chunks[-1].finish_reason, chunks[-1].num_output_tokens) == ("stop", 3)


def test_log_probs_are_added_up(start, make_runner, submit):
    chunks = submit(start(make_runner()), [1], max_tokens=6, return_log_probs=True).chunks()
    sums = np.cumsum([chunk.log_probs[0] for chunk in chunks])
    np.testing.assert_allclose([chunk.cumulative_log_prob for chunk in chunks], sums)
    assert all(c.cumulative_log_prob is None for c in submit(start(make_runner()), [1], max_tokens=2).chunks())


def test_stop_string_cuts_the_text(start, make_runner, byte_tokenizer, alone):
    text = "".join(chunk.text for chunk in alone(make_runner(), [5], max_tokens=40))
    clean = [index for index in range(1, len(text) - 1) if "\ufffd" not in text[index : index + 2]]
    stop = text[clean[2] : clean[2] + 2]
    chunks = alone(make_runner(), [5], max_tokens=40, stop=(stop,))
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_log_probs_of_completion_and_prompt(start, make_any_runner, make_runner, submit):
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    options = {"max_tokens": 3, "return_log_probs": True, "return_prompt_log_probs": True}
    chunks = submit(start(make_any_runner(), prompt_tokens=3), prompt, **options).chunks()
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    expected = log_probs(make_runner(), prompt + tokens, chunk=5)
    np.testing.assert_allclose(chunks[-1].prompt_log_probs, expected[: len(prompt) - 1], atol=1e-12)
    np.testing.assert_allclose([chunk.log_probs[0] for chunk in chunks], expected[len(prompt) - 1 :], atol=1e-12)


def test_score_only(start, make_any_runner, make_runner, submit):
    (chunk,) = submit(start(make_any_runner()), [1, 2, 3], max_tokens=0, return_prompt_log_probs=True).chunks()
    assert (chunk.finish_reason, chunk.num_output_tokens, chunk.token_ids, chunk.text) == ("length", 0, (), "")
    np.testing.assert_allclose(chunk.prompt_log_probs, log_probs(make_runner(), [1, 2, 3]))


class GatedRunner:
    """Runs a step only when let; what it says goes for the runner inside."""

    def __init__(self, inner):
        self.inner, self.steps, self.error = inner, threading.Semaphore(0), None
        self.slots, self.context_length, self.vocab_size = inner.slots, inner.context_length, inner.vocab_size

    def prefill(self, *arguments):
        return self._step(self.inner.prefill, arguments)

    def decode(self, *arguments):
        return self._step(self.inner.decode, arguments)

    def _step(self, step, arguments):
        assert self.steps.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        return step(*arguments)


def test_a_long_prompt_delays_its_neighbours_by_one_chunk(start, make_runner, submit):
    runner = make_runner()
    gated = GatedRunner(runner)
    scheduler = start(gated, prompt_tokens=4)
    short = submit(scheduler, [1], max_tokens=10)
    gated.steps.release(1)
    short.events.get(timeout=5)
    long = submit(scheduler, range(40), max_tokens=1)
    gated.steps.release(100)
    long.chunks()
    assert runner.prefills == [4] * 10
    assert len(runner.decodes) == 10  # the first, and one beside each chunk of the long prompt


def test_cancel_ends_a_running_and_a_waiting_request(start, make_runner, submit):
    gated = GatedRunner(make_runner(slots=1))
    scheduler = start(gated)
    running, waiting = submit(scheduler, [1], max_tokens=50), submit(scheduler, [2], max_tokens=50)
    gated.steps.release(3)
    for _ in range(3):
        assert running.events.get(timeout=5).finish_reason is None
    waiting.ticket.cancel()
    running.ticket.cancel()
    gated.steps.release(1)
    assert running.chunks()[-1].finish_reason == "cancelled"
    assert waiting.chunks()[-1].finish_reason == "cancelled"
    gated.steps.release(100)
    assert len(submit(scheduler, [3], max_tokens=4).tokens()) == 4
    running.ticket.cancel()  # after the end: no effect


def test_the_lowest_free_slot_is_taken(start, make_runner, submit):
    gated = GatedRunner(make_runner())
    scheduler = start(gated)
    first, second = submit(scheduler, [1], max_tokens=2), submit(scheduler, [2], max_tokens=60)
    gated.steps.release(3)
    first.chunks()
    third = submit(scheduler, [3], max_tokens=2)
    gated.steps.release(1000)
    third.chunks()
    second.chunks()
    assert {slot for slot, _ in gated.inner.decodes} == {0, 1}
    assert max(slot + count for slot, count in gated.inner.decodes) == 2


def test_a_failing_step_fails_its_requests_and_no_others(start, make_runner, submit):
    gated = GatedRunner(make_runner())
    scheduler = start(gated)
    doomed = [submit(scheduler, [n], max_tokens=60) for n in range(2)]
    gated.steps.release(3)
    for receiver in doomed:
        assert isinstance(receiver.events.get(timeout=5), Chunk)
    gated.error = RuntimeError("out of memory")
    gated.steps.release(1)
    for receiver in doomed:
        with pytest.raises(CheckError, match="out of memory"):
            receiver.chunks()
    gated.error = None
    gated.steps.release(1000)
    assert len(submit(scheduler, [5], max_tokens=4).tokens()) == 4


def test_a_failing_mixed_step_fails_its_requests_and_no_others(start, make_mixed_runner, submit):
    runner = make_mixed_runner(slots=2)
    step = runner.step

    def failing(segments):
        if len(segments) == 2:
            raise RuntimeError("out of memory")
        return step(segments)

    runner.step = failing
    scheduler = start(runner)
    doomed = [submit(scheduler, [n] * 3, max_tokens=60) for n in range(3)]
    for receiver in doomed[:2]:
        with pytest.raises(CheckError, match="out of memory"):
            receiver.chunks()
    assert len(doomed[2].tokens()) == 60


def test_logits_that_are_not_finite_fail_the_request(start, make_runner, submit):
    runner = make_runner()
    runner._logits = lambda slot, length: np.full(256, np.nan)
    with pytest.raises(CheckError, match="logit of nan"):
        submit(start(runner), [1]).chunks()


def test_an_error_in_the_scheduler_fails_everything_loudly(start, make_runner, caplog, submit, monkeypatch):
    scheduler = start(make_runner())
    monkeypatch.setattr(scheduler._batch, "plan", lambda *arguments: [None])  # nothing that a plan may be
    receiver = submit(scheduler, [1])
    with pytest.raises(AttributeError):
        receiver.chunks()
    scheduler._thread.join(5)
    assert scheduler.failed
    assert "the scheduler has failed" in caplog.text
    with pytest.raises(UnavailableError, match="the scheduler has failed"):
        submit(scheduler, [1])


def test_a_receiver_that_raises_loses_only_its_own_request(start, make_runner, caplog, submit):
    scheduler = start(make_runner(slots=1))

    def broken(event):
        raise RuntimeError("no one listens")

    scheduler.submit(GenerationRequest((1,), SamplingParameters(max_tokens=50)), broken)
    assert len(submit(scheduler, [2], max_tokens=3).tokens()) == 3
    assert "no one listens" in caplog.text


def test_the_queue_is_bounded(start, make_runner, submit):
    gated = GatedRunner(make_runner(slots=1))
    scheduler = start(gated, max_waiting=2)
    running = submit(scheduler, [1], max_tokens=2)
    gated.steps.release(1)
    running.events.get(timeout=5)
    waiting = [submit(scheduler, [n], max_tokens=1) for n in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        submit(scheduler, [9])
    gated.steps.release(1000)
    assert all(len(receiver.tokens()) == 1 for receiver in waiting)


def test_close_fails_what_is_open_and_refuses_more(start, make_runner, submit):
    gated = GatedRunner(make_runner(slots=1))
    scheduler = start(gated)
    receivers = [submit(scheduler, [n], max_tokens=50) for n in range(3)]
    threading.Timer(0.1, gated.steps.release, [1]).start()
    scheduler.close()
    for receiver in receivers:
        with pytest.raises(UnavailableError, match="shutting down"):
            receiver.chunks()
    with pytest.raises(UnavailableError, match="shutting down"):
        submit(scheduler, [1])


def test_close_with_grace_lets_open_requests_finish_and_refuses_those_that_wait(start, make_runner, submit):
    gated = GatedRunner(make_runner(slots=1))
    scheduler = start(gated)
    running = submit(scheduler, [0], max_tokens=20)
    gated.steps.release(1)
    running.events.get(timeout=5)
    waiting = [submit(scheduler, [n], max_tokens=20) for n in (1, 2)]
    closing = threading.Thread(target=scheduler.close, args=(20,))
    closing.start()
    gated.steps.release(1)
    for receiver in waiting:  # before the one that runs has finished
        with pytest.raises(UnavailableError, match="shutting down"):
            receiver.chunks()
    gated.steps.release(100)
    assert len(running.tokens()) == 19
    closing.join(20)


def test_requests_that_cannot_be_served_are_refused(start, make_runner, submit):
    scheduler = start(make_runner())
    with pytest.raises(InputError, match="prompt is empty"):
        submit(scheduler, [])
    with pytest.raises(InputError, match="120 tokens and max_tokens 9 make 129, more than the context of 128"):
        submit(scheduler, [1] * 120, max_tokens=9)
    with pytest.raises(InputError, match="outside the vocabulary"):
        submit(scheduler, [256])
    with pytest.raises(InputError, match="outside the vocabulary"):
        submit(scheduler, [-1])
    with pytest.raises(InputError, match="stop_token_ids: a token id is outside the vocabulary"):
        submit(scheduler, [1], stop_token_ids=(256,))
    with pytest.raises(InputError, match="nothing to do"):
        submit(scheduler, [1], max_tokens=0)
    assert len(submit(scheduler, [1] * 120, max_tokens=8).tokens()) == 8  # to the last position of the context
