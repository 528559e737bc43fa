import shutil
from dataclasses import replace

import numpy as np
import pytest

from hebbline.artifacts import InputError, read_manifest
from hebbline.runtime import MixedRunner, Segment
from hebbline.runtime.onnxruntime import cache_bytes_per_slot, language_model_facts
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.scoring import log_probs, scored_chunk, token_log_probs
from hebbline.runtime.tokenizer import load_tokenizer
from hebbline.serve.scheduler import Scheduler

SLOTS = 4


@pytest.fixture(scope="module", params=["kernels", "portable"])
def runner(request, tiny_artifact):
    return open_onnx(tiny_artifact, SLOTS, threads=1, graph=request.param)


@pytest.fixture(scope="module")
def mixed(tiny_artifact):
    """A runner that takes mixed steps."""
    runner = open_onnx(tiny_artifact, SLOTS, threads=1)
    assert isinstance(runner, MixedRunner)
    return runner


@pytest.fixture
def ids(tiny_artifact):
    vocab_size = language_model_facts(tiny_artifact).vocab_size
    return np.random.default_rng(3).integers(0, vocab_size, 60).tolist()


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
    runner = open_onnx(tiny_artifact, 1, threads=1, graph="portable")
    for length in range(1, 100):
        runner.prefill(0, [1] * length, 0, [length - 1])
    assert len(runner._bindings) <= 64


def test_a_mixed_step_is_each_segment_alone(mixed, ids):
    held = {0: 20, 1: 33, 3: 0}
    for slot, past in held.items():
        if past:
            mixed.prefill(slot, ids[:past], 0, [])
    segments = [
        Segment(3, ids[:17], 0, (16, 2)),
        Segment(0, ids[20:21], 20, (0,)),
        Segment(1, ids[33:40], 33, ()),
        Segment(2, ids[:3], 0, range(3)),
    ]
    alone = [mixed.step([segment]).copy() for segment in segments]
    together = mixed.step(segments)
    assert together.shape == (6, mixed.vocab_size)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_mixed_steps_that_do_not_fit_are_refused(mixed):
    good = Segment(0, [1], 0, (0,))
    for bad, message in (
        (Segment(0, [1], 0, ()), "does not fit"),
        (Segment(SLOTS, [1], 0, ()), "does not fit"),
        (Segment(1, [], 0, ()), "does not fit"),
        (Segment(1, [1], mixed.context_length, ()), "exceed the context"),
        (Segment(1, [-1], 0, ()), "vocabulary"),
        (Segment(1, [1, 1], 0, (2,)), "rows"),
    ):
        with pytest.raises(ValueError, match=message):
            mixed.step([good, bad])
    with pytest.raises(ValueError, match="does not fit"):
        mixed.step([])


@pytest.mark.parametrize(("kv", "tolerance"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_narrow_keys_and_values_are_near_the_exact_ones(tiny_artifact, mixed, ids, kv, tolerance):
    """Near, but not the same: the cache is really kept in that format."""
    narrow = open_onnx(tiny_artifact, SLOTS, threads=1, kv=kv)
    exact = whole(mixed, 0, ids)
    difference = np.abs(whole(narrow, 0, ids) - exact).max() / np.abs(exact).max()
    assert 0 < difference < tolerance
    for past in range(40, 60):
        alone = whole(narrow, 1, ids[: past + 1])[past]
        np.testing.assert_allclose(narrow.decode(0, [ids[past]], [past])[0], alone, atol=1e-4)
    assert sum(cache.nbytes for cache in narrow._caches) == SLOTS * cache_bytes_per_slot(narrow.facts, kv)


def without_kernels_graph(artifact, directory):
    """The artifact as it was before there was a second graph."""
    manifest = read_manifest(artifact)
    shutil.copytree(artifact, directory)
    (directory / "model.hebbline.onnx").unlink()
    files = {name: facts for name, facts in manifest.files.items() if name != "model.hebbline.onnx"}
    (directory / "hebbline.json").write_text(replace(manifest, files=files).to_json())


def test_an_artifact_with_the_portable_graph_only_is_served(tiny_artifact, tmp_path, ids, runner):
    without_kernels_graph(tiny_artifact, tmp_path / "old")
    old = open_onnx(tmp_path / "old", 1, threads=1)
    assert isinstance(old, PortableRunner)
    np.testing.assert_allclose(whole(old, 0, ids), whole(runner, 0, ids), atol=1e-4)
    with pytest.raises(InputError, match=r"no model\.hebbline\.onnx: export the model again"):
        open_onnx(tmp_path / "old", 1, graph="kernels")
    with pytest.raises(InputError, match="need the op library"):
        open_onnx(tmp_path / "old", 1, kv="int8")


def test_without_the_op_library_the_portable_graph_is_served(tiny_artifact, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HEBBLINE_KERNELS", str(tmp_path / "nothing.so"))
    assert isinstance(open_onnx(tiny_artifact, 1, threads=1), PortableRunner)
    assert [record.message for record in caplog.records if "without the op library" in record.message]
    with pytest.raises(InputError, match=r"nothing\.so: no such file"):
        open_onnx(tiny_artifact, 1, graph="kernels")
    with pytest.raises(InputError, match=r"nothing\.so: no such file"):
        open_onnx(tiny_artifact, 1, kv="int8")


def test_an_unknown_format_of_keys_and_values_is_refused(tiny_artifact):
    with pytest.raises(InputError, match="'int3'"):
        open_onnx(tiny_artifact, 1, kv="int3")


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
    caches = runner._caches.values() if isinstance(runner, PortableRunner) else runner._caches
    assert SLOTS * cache_bytes_per_slot(runner.facts) == sum(cache.nbytes for cache in caches)


def test_scheduler_on_the_real_runner(runner, tiny_artifact, ids, submit):
    scheduler = Scheduler(runner, load_tokenizer(tiny_artifact), (), prompt_tokens=8)
    jobs = [(ids[: 1 + 4 * n], {"max_tokens": 12, "temperature": 0.5, "seed": n}) for n in range(10)]
    expected = [submit(scheduler, prompt, **options).tokens() for prompt, options in jobs]
    together = [submit(scheduler, prompt, **options) for prompt, options in jobs]
    assert [receiver.tokens() for receiver in together] == expected
    scheduler.close()


def test_no_artifact_and_no_slots_are_refused(tiny_artifact, tiny_model_directory, tmp_path):
    with pytest.raises(InputError, match="not a published directory"):
        open_onnx(tmp_path, 1)
    with pytest.raises(InputError, match="of kind 'model'"):
        open_onnx(tiny_model_directory, 1)
    with pytest.raises(InputError, match="slots"):
        open_onnx(tiny_artifact, 0)
