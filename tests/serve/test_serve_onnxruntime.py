import numpy as np
import pytest

from hebbline.artifacts import InputError
from hebbline.serve.engine.onnxruntime import OnnxRunner, cache_bytes_per_slot
from hebbline.serve.engine.scoring import log_probs, scored_chunk, token_log_probs
from hebbline.serve.scheduler import Scheduler
from hebbline.serve.tokenizer import load_tokenizer

SLOTS = 4


@pytest.fixture(scope="module")
def runner(tiny_artifact):
    return OnnxRunner.open(tiny_artifact, SLOTS, threads=1)


@pytest.fixture
def ids(runner):
    return np.random.default_rng(3).integers(0, runner.vocab_size, 60).tolist()


def whole(runner, slot, ids):
    return runner.prefill(slot, ids, 0, range(len(ids))).copy()


def test_chunked_prefill_is_whole_prefill(runner, ids):
    expected = whole(runner, 0, ids)
    for chunk in (1, 7, 32):
        for past in range(0, len(ids), chunk):
            piece = ids[past : past + chunk]
            logits = runner.prefill(2, piece, past, range(len(piece)))
            np.testing.assert_allclose(logits, expected[past : past + chunk], atol=1e-4)


def test_only_the_rows_asked_for_come_back(runner, ids):
    expected = whole(runner, 0, ids)
    np.testing.assert_allclose(runner.prefill(1, ids, 0, [59, 3]), expected[[59, 3]], atol=1e-4)
    assert runner.prefill(1, ids, 0, []).shape == (0, runner.vocab_size)


def test_ragged_decode_is_each_alone(runner, ids):
    lengths = [5, 1, 33, 20]
    expected = [whole(runner, 0, ids[: length + 3])[length:] for length in lengths]
    for slot, length in enumerate(lengths):
        runner.prefill(slot, ids[:length], 0, [])
    for step in range(3):
        past = [length + step for length in lengths]
        logits = runner.decode(0, [ids[p] for p in past], past)
        np.testing.assert_allclose(logits, [rows[step] for rows in expected], atol=1e-4)


def test_a_range_of_slots_leaves_the_others_alone(runner, ids):
    expected = whole(runner, 0, ids[:11])[10]
    runner.prefill(3, ids[:10], 0, [])
    runner.decode(1, [5, 6], [0, 0])
    np.testing.assert_allclose(runner.decode(3, [ids[10]], [10])[0], expected, atol=1e-4)


def test_the_whole_context_can_be_filled_and_not_more(runner):
    context = runner.context_length
    runner.prefill(0, [1] * (context - 1), 0, [])
    assert np.isfinite(runner.decode(0, [1], [context - 1])).all()
    with pytest.raises(ValueError, match=f"exceed the context of {context}"):
        runner.decode(0, [1], [context])
    with pytest.raises(ValueError, match="exceed the context"):
        runner.prefill(0, [1] * 10, context - 9, [9])
    with pytest.raises(ValueError, match="exceed the context"):
        runner.decode(0, [1, 1], [0, context])


@pytest.mark.parametrize(
    ("slot", "ids", "past", "rows"),
    [
        (SLOTS, [1], 0, [0]),
        (-1, [1], 0, [0]),
        (0, [], 0, []),
        (0, [1], -1, [0]),
        (0, [-1], 0, [0]),
        (0, [10**6], 0, [0]),
        (0, [1], 0, [1]),
        (0, [1], 0, [-1]),
    ],
)
def test_steps_outside_the_cache_or_the_vocabulary_are_refused(runner, slot, ids, past, rows):
    with pytest.raises(ValueError):
        runner.prefill(slot, ids, past, rows)


def test_decode_beyond_the_slots_is_refused(runner):
    with pytest.raises(ValueError, match="does not fit"):
        runner.decode(2, [1, 1, 1], [0, 0, 0])


def test_bindings_are_bounded(tiny_artifact):
    runner = OnnxRunner.open(tiny_artifact, 1, threads=1)
    for length in range(1, 100):
        runner.prefill(0, [1] * length, 0, [length - 1])
    assert len(runner._bindings) <= 64


def test_log_probs_do_not_depend_on_the_chunk(runner, ids):
    expected = token_log_probs(whole(runner, 0, ids)[:-1], ids[1:])
    np.testing.assert_allclose(log_probs(runner, ids), expected, atol=1e-4)
    np.testing.assert_allclose(log_probs(runner, ids, slot=1, chunk=11), expected, atol=1e-4)


def test_log_probs_take_the_context_and_one_token_more(runner):
    assert len(log_probs(runner, [1] * (runner.context_length + 1))) == runner.context_length
    with pytest.raises(InputError, match="does not fit the context"):
        log_probs(runner, [1] * (runner.context_length + 2))
    with pytest.raises(InputError, match="at least 2"):
        log_probs(runner, [1])


def test_scored_chunks_bound_the_logits():
    assert scored_chunk(1000, 128) == 128
    assert scored_chunk(1 << 20, 128) == 4
    assert scored_chunk(1 << 24, 128) == 1


def test_cache_size(runner):
    assert SLOTS * cache_bytes_per_slot(runner.facts) == sum(cache.nbytes for cache in runner._caches.values())


def test_scheduler_on_the_real_runner(runner, tiny_artifact, ids, submit):
    scheduler = Scheduler(runner, load_tokenizer(tiny_artifact), (), prefill_chunk=8)
    jobs = [(ids[: 1 + 4 * n], {"max_tokens": 12, "temperature": 0.5, "seed": n}) for n in range(10)]
    expected = [submit(scheduler, prompt, **options).tokens() for prompt, options in jobs]
    together = [submit(scheduler, prompt, **options) for prompt, options in jobs]
    assert [receiver.tokens() for receiver in together] == expected
    scheduler.close()


def test_no_artifact_and_no_slots_are_refused(tiny_artifact, tiny_model_directory, tmp_path):
    with pytest.raises(InputError, match="not a published directory"):
        OnnxRunner.open(tmp_path, 1)
    with pytest.raises(InputError, match="of kind 'model'"):
        OnnxRunner.open(tiny_model_directory, 1)
    with pytest.raises(InputError, match="slots"):
        OnnxRunner.open(tiny_artifact, 0)
