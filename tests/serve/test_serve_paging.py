"""A cache of blocks that sequences share: the same logits bit for bit, and the same completions as alone."""

import numpy as np
import pytest

from hebbline.artifacts import InputError
from hebbline.runtime.cache_size import bytes_per_block, describe_cache, pool_blocks
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.runner import PagedRunner, Segment
from hebbline.runtime.tokenizer import load_tokenizer
from hebbline.runtime.warm_up import warm_up
from hebbline.serve.scheduler import Scheduler


@pytest.fixture
def start(byte_tokenizer):
    started = []

    def make(runner, tokenizer=byte_tokenizer, **options):
        started.append(Scheduler(runner, tokenizer, (), **options))
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close()


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8"])
def test_where_blocks_lie_and_who_shares_them_changes_no_bit(tiny_artifact, kv):
    slots = open_onnx(tiny_artifact, 2, threads=1, graph="kernels", kv=kv)
    paged = open_onnx(tiny_artifact, 2, threads=1, graph="kernels", kv=kv, cache_bytes=0)
    assert isinstance(paged, PagedRunner) and not isinstance(slots, PagedRunner)
    generator = np.random.default_rng(0)
    shared, ends = generator.integers(0, 300, 32).tolist(), generator.integers(0, 300, (2, 9)).tolist()
    numbers = generator.permutation(paged.num_blocks).tolist()
    tables = [numbers[:3], [*numbers[:2], numbers[3]]]
    for slot in range(2):
        slots.prefill(slot, shared, 0, [])
    expected = slots.step([Segment(slot, end, 32, range(9)) for slot, end in enumerate(ends)]).tobytes()
    paged.step([Segment(0, shared, 0, (), tables[0])])
    found = paged.step([Segment(slot, end, 32, range(9), tables[slot]) for slot, end in enumerate(ends)])
    assert found.tobytes() == expected
    after = slots.decode(0, [1, 2], [41, 41]).tobytes()
    assert paged.step([Segment(s, (s + 1,), 41, (0,), tables[s]) for s in range(2)]).tobytes() == after
    with pytest.raises(Exception, match="is in use by another, and one of the two writes to it"):
        paged.step([Segment(0, (1,), 42, (0,), tables[0]), Segment(1, (1,), 42, (0,), tables[0])])


def test_a_step_can_be_checked_by_slot_alone(tiny_artifact):
    paged = open_onnx(tiny_artifact, 2, threads=1, graph="kernels", cache_bytes=0)
    slots = open_onnx(tiny_artifact, 2, threads=1, graph="kernels")
    assert paged.prefill(1, [1, 2, 3], 0, [2]).tobytes() == slots.prefill(1, [1, 2, 3], 0, [2]).tobytes()
    with pytest.raises(ValueError, match="slot 1 has no blocks of its own"):
        paged.num_blocks = 4
        paged.prefill(1, [1], 0, [0])


def test_the_size_of_the_pool(tiny_artifact):
    facts = open_onnx(tiny_artifact, 1, threads=1).facts
    block, context = bytes_per_block(facts), -(-facts.context_length // 16)
    assert pool_blocks(facts, 3, 0) == 3 * context
    assert pool_blocks(facts, 3, context * block) == context
    assert pool_blocks(facts, 1, 9 * context * block + block - 1) == 9 * context
    with pytest.raises(InputError, match=f"cache_bytes {context * block - 1} is too little for the context"):
        pool_blocks(facts, 3, context * block - 1)
    runner = open_onnx(tiny_artifact, 1, threads=1, graph="kernels", cache_bytes=0)
    assert sum(cache.nbytes for cache in runner._caches) == runner.num_blocks * block
    assert f"{runner.num_blocks} blocks of 16 tokens" in describe_cache(runner, facts)
    portable = open_onnx(tiny_artifact, 1, threads=1, graph="portable", cache_bytes=0)
    assert "cannot share blocks" in describe_cache(portable, facts)


@pytest.mark.parametrize("kind", ["memory", "real"])
def test_completions_with_shared_beginnings_are_those_without(kind, start, make_paged_runner, tiny_artifact, submit):
    def make():
        if kind == "memory":
            return start(make_paged_runner(num_blocks=40))
        runner = open_onnx(tiny_artifact, 4, threads=1, graph="kernels", cache_bytes=0)
        return start(runner, load_tokenizer(tiny_artifact))

    system = np.random.default_rng(1).integers(0, 256, 70).tolist()
    jobs = [
        ([*system[: 70 - 9 * (n % 3)], n, n + 1], {"max_tokens": 9, "temperature": 0.7, "seed": n}) for n in range(12)
    ]
    expected = [submit(make(), prompt, **options).tokens() for prompt, options in jobs]
    scheduler = make()
    for _ in range(2):
        together = [submit(scheduler, prompt, **options) for prompt, options in jobs]
        assert [receiver.tokens() for receiver in together] == expected
    counts = scheduler._batch.pool.counts
    assert counts.found > counts.looked_up / 3
    assert scheduler._batch.pool.available == scheduler._batch.pool.size


def test_alike_prompts_at_once_are_read_once(start, make_paged_runner, submit):
    runner = make_paged_runner(num_blocks=40)
    scheduler = start(runner)
    receivers = [submit(scheduler, range(100), max_tokens=3) for _ in range(4)]
    assert len({tuple(receiver.tokens()) for receiver in receivers}) == 1
    assert sum(runner.prefills) <= 100 + 3 * 4  # one whole prompt, and what is beyond the last full block of the others


def test_a_pool_that_is_too_small_for_all_serves_them_all_the_same(start, make_paged_runner, submit):
    jobs = [([n] * 30, {"max_tokens": 40, "temperature": 1.0, "seed": n}) for n in range(6)]
    expected = [submit(start(make_paged_runner()), prompt, **options).chunks() for prompt, options in jobs]
    scheduler = start(make_paged_runner(num_blocks=8))
    receivers = [submit(scheduler, prompt, **options) for prompt, options in jobs]
    assert [receiver.chunks() for receiver in receivers] == expected
    assert scheduler._batch.preempted > 0
    assert scheduler._batch.pool.available == 8


def test_a_scored_prompt_is_read_whole_and_scored_once(start, make_paged_runner, submit):
    scheduler = start(make_paged_runner(), prompt_tokens=16)
    options = {"max_tokens": 2, "return_prompt_log_probs": True, "return_log_probs": True, "top_logprobs": 2}
    first, second = (submit(scheduler, range(50), **options).chunks()[-1] for _ in range(2))
    assert first == second
    assert len(first.prompt_log_probs) == len(first.prompt_top_log_probs) == 49


def test_cancelled_and_failed_requests_give_their_blocks_back(start, make_paged_runner, submit):
    runner = make_paged_runner()
    step = runner.step

    def failing(segments):
        if any(segment.past > 40 for segment in segments):
            raise RuntimeError("out of memory")
        return step(segments)

    runner.step = failing
    scheduler = start(runner)
    doomed = [submit(scheduler, [n] * 20, max_tokens=60) for n in range(3)]
    for receiver in doomed:
        with pytest.raises(Exception, match="out of memory"):
            receiver.chunks()
    cancelled = submit(scheduler, [1] * 20, max_tokens=15)
    cancelled.ticket.cancel()
    assert cancelled.chunks()[-1].finish_reason == "cancelled"
    assert scheduler._batch.pool.available == scheduler._batch.pool.size


@pytest.mark.parametrize("graph", ["kernels", "portable"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("contexts", [None, 1, 2])
def test_a_runner_of_any_kind_and_size_warms_up(tiny_artifact, graph, slots, contexts):
    block = bytes_per_block(open_onnx(tiny_artifact, 1, threads=1).facts)
    context = -(-open_onnx(tiny_artifact, 1, threads=1).context_length // 16)
    size = None if contexts is None else contexts * context * block
    runner = open_onnx(tiny_artifact, slots, threads=1, graph=graph, cache_bytes=size)
    expected = runner.prefill(0, [1, 2, 3], 0, [2]).copy()
    warm_up(runner)
    assert runner.prefill(0, [1, 2, 3], 0, [2]).tobytes() == expected.tobytes()


def test_a_runner_in_memory_warms_up(make_runner):
    runner = make_runner(slots=1)
    warm_up(runner)
    assert (runner.prefills, runner.decodes) == ([64], [(0, 1)])
    warm_up(make_runner(context_length=1))  # no token fits after a prompt
