"""VarlenAttention against float64: every instruction set and cache format, and steps of every kind."""

import numpy as np
import pytest
from attention_model import FORMATS, Attention, Sequence, expected, make_model, make_sequence, open_session, rotated

from hebbline.export.layouts import DOMAIN

ISAS = ("scalar", "avx2", "avx512")
TOLERANCE = 3e-6
"""Largest difference from attention in float64 over the numbers that the cache holds, for inputs around 1."""


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Each instruction set that this processor has."""
    monkeypatch.setenv("HEBBLINE_ISA", request.param)
    try:
        Attention(1, 1, 16)
    except Exception as error:
        if "this processor lacks it" in str(error):
            pytest.skip(f"this processor lacks {request.param}")
        raise
    return request.param


def largest(actual, wanted):
    assert actual.shape == wanted.shape
    return float(np.abs(actual - wanted).max(initial=0))


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("shape", [(9, 3, 64), (4, 4, 16), (8, 1, 128), (10, 2, 80), (6, 2, 48)], ids=str)
def test_prefill_and_decode_of_every_shape(isa, shape, kv):
    """Two chunks of prefill and four single tokens, beside a neighbour of another length in the same steps."""
    attention = Attention(*shape, kv, context=96)
    rng = np.random.default_rng(1)
    data, other = attention.random(rng, 75), attention.random(rng, 21)
    for past, count in ((0, 37), (37, 34), (71, 1), (72, 1), (73, 1), (74, 1)):
        sequences = [make_sequence(2, past, data, count)]
        if past in (0, 72):
            sequences.insert(0, make_sequence(0, 0 if past == 0 else 20, other, 20 if past == 0 else 1))
        results = attention.step(sequences)
        wanted = expected(attention, [x[: past + count] for x in data], 2, first=past)
        assert largest(results[-1], wanted) < TOLERANCE
        if past == 72:
            assert largest(results[0], expected(attention, other, 0, first=20)) < TOLERANCE


@pytest.mark.parametrize("kv", FORMATS)
def test_the_cache_holds_each_number_rounded_to_the_nearest(isa, kv):
    attention = Attention(4, 2, 32, kv)
    data = attention.random(np.random.default_rng(0), 70)
    data[2][7] = 0
    attention.step([make_sequence(1, 0, data, 70)])
    for actual, wanted in zip(attention.held(1, 70), rotated(attention, data)[1:], strict=True):
        step = {"float32": 0, "bfloat16": np.abs(wanted) / 128, "int8": np.abs(wanted).max(-1, keepdims=True) / 127}[kv]
        assert (np.abs(actual - wanted) <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("kv", FORMATS)
def test_queries_keys_and_values_may_come_side_by_side(isa, kv):
    """The same bits in outputs and cache."""
    apart, together = (Attention(6, 2, 32, kv) for _ in range(2))
    together.session = open_session(make_model(6, 2, packed=True))
    data = apart.random(np.random.default_rng(9), 40)
    for past, count in ((0, 30), (30, 1), (31, 9)):
        sequence = make_sequence(1, past, data, count)
        (wanted,) = apart.step([sequence])
        feeds = apart.feeds([sequence])
        feeds["queries"] = np.concatenate([feeds["queries"], feeds.pop("keys"), feeds.pop("values")], axis=1)
        feeds["cache"] = together.cache
        attended, together.cache = together.session.run(None, feeds)
        assert attended.tobytes() == wanted.tobytes()
        np.testing.assert_array_equal(together.cache, apart.cache)


@pytest.mark.parametrize("kv", FORMATS)
def test_long_context_is_cut_and_merged(isa, kv):
    """More keys than a span, at lengths around the edges of blocks, chunks and spans."""
    attention = Attention(6, 2, 32, kv, slots=1, context=800)
    data = attention.random(np.random.default_rng(2), 800)
    attention.step([make_sequence(0, 0, data, 790)])
    for past in (0, 15, 16, 127, 128, 255, 256, 257, 511, 512, 700, 789):
        (result,) = attention.step([make_sequence(0, past, data, 2)])
        wanted = expected(attention, [x[: past + 2] for x in data], 0, first=past)
        assert largest(result, wanted) < TOLERANCE


KINDS = {
    "window": {"attributes": {"window": 20}},
    "window of one": {"attributes": {"window": 1}},
    "window wider than a span": {"attributes": {"window": 300}},
    "soft cap": {"attributes": {"softcap": 1.5}},
    "scale": {"attributes": {"scale": 0.05}},
    "partial rotary": {"rotary": 12},
    "no rotary": {"rotary": 0},
    "all": {"attributes": {"window": 33, "softcap": 5.0, "scale": 0.4}, "rotary": 8},
}


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_windows_caps_scales_and_partial_rotary_embedding(isa, kind, kv):
    """A prompt in two chunks, then single tokens around the edges of blocks, chunks and spans."""
    attention = Attention(6, 2, 32, kv, slots=1, context=560, **kind)
    data = attention.random(np.random.default_rng(12), 560)
    for past, count in ((0, 300), (300, 255), (0, 10), (15, 1), (127, 2), (256, 1), (383, 3), (555, 5)):
        (result,) = attention.step([make_sequence(0, past, data, count)])
        wanted = expected(attention, [x[: past + count] for x in data], 0, first=past)
        assert largest(result, wanted) < TOLERANCE


def test_a_token_left_of_the_window_has_no_effect(isa):
    attention = Attention(2, 1, 16, context=600, attributes={"window": 40})
    data = attention.random(np.random.default_rng(13), 600)
    attention.step([make_sequence(0, 0, data, 600)])
    (before,) = attention.step([make_sequence(0, 599, data, 1)])
    attention.cache[0, :, : 559 // 16] = 0xFF  # NaN
    (after,) = attention.step([make_sequence(0, 599, data, 1)])
    assert after.tobytes() == before.tobytes()


@pytest.mark.parametrize("kv", FORMATS)
def test_a_sequence_does_not_depend_on_its_neighbours_or_on_threads(isa, kv):
    """Bit for bit: alone, in a batch, in another order, with more threads."""
    rng = np.random.default_rng(3)
    shape = {"heads": 6, "kv_heads": 2, "head_dim": 64, "kv": kv, "slots": 4, "context": 600}
    lengths = ((500, 1), (0, 70), (290, 3), (599, 1))

    def run(threads, together):
        attention = Attention(**shape, threads=threads)
        for slot, (past, _) in enumerate(lengths):
            if past:
                attention.step([make_sequence(slot, 0, data[slot], past)])
        sequences = [make_sequence(n, past, data[n], count) for n, (past, count) in enumerate(lengths)]
        if not together:
            return [attention.step([sequence])[0] for sequence in sequences]
        results = attention.step(sequences[::-1])
        return results[::-1]

    data = [Attention(**shape).random(rng, past + count) for past, count in lengths]
    alone = run(1, together=False)
    for threads in (1, 2):
        for result, wanted in zip(run(threads, together=True), alone, strict=True):
            assert result.tobytes() == wanted.tobytes()


def test_chunks_of_a_prompt_are_the_whole_prompt():
    attention = Attention(9, 3, 64, slots=2, context=400)
    data = attention.random(np.random.default_rng(4), 400)
    (whole,) = attention.step([make_sequence(0, 0, data, 400)])
    for chunk in (1, 64, 100):
        for past in range(0, 400, chunk):
            (part,) = attention.step([make_sequence(1, past, data, chunk)])
            assert largest(part, whole[past : past + chunk]) < 1e-6


@pytest.mark.parametrize("kv", FORMATS)
def test_other_slots_and_what_a_slot_held_before_do_not_matter(kv):
    attention = Attention(4, 2, 32, kv, slots=3, context=64)
    rng = np.random.default_rng(5)
    data, before = attention.random(rng, 30), attention.random(rng, 64)
    for x in before:
        x[:] = np.nan
    for slot in range(3):
        attention.step([make_sequence(slot, 0, before, 64)])
    (result,) = attention.step([make_sequence(1, 0, data, 30)])
    assert largest(result, expected(attention, data, 1)) < TOLERANCE
    untouched = attention.cache[[0, 2]].copy()
    attention.step([make_sequence(1, 0, data, 30)])
    np.testing.assert_array_equal(attention.cache[[0, 2]], untouched)


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_hidden(isa, kv, value):
    """Whatever of a token is broken: the result says so, and only for tokens that attend to it."""
    for part in ("queries", "keys", "values"):
        attention = Attention(2, 1, 16, kv)
        sequence = Sequence(0, 0, *attention.random(np.random.default_rng(6), 1))
        attention.step([sequence])
        getattr(sequence, part)[0, 3] = value
        sequence.past = 1
        (result,) = attention.step([sequence])
        assert not np.isfinite(result).all()


def test_scores_far_apart_do_not_overflow(isa):
    attention = Attention(2, 1, 16)
    data = attention.random(np.random.default_rng(7), 40)
    data[0] *= 300
    data[1] *= 300
    (result,) = attention.step([make_sequence(0, 0, data, 40)])
    assert largest(result, expected(attention, data, 0)) < 1e-2
    assert np.isfinite(result).all()


def test_a_cache_that_is_not_bound_in_place_is_copied():
    attention = Attention(4, 2, 16)
    data = attention.random(np.random.default_rng(8), 20)
    feeds = attention.feeds([make_sequence(1, 0, data, 20)]) | {"cache": attention.cache}
    attended, cache = attention.session.run(None, feeds)
    assert (attention.cache == 0xFF).all()
    (result,) = attention.step([make_sequence(1, 0, data, 20)])
    assert attended.tobytes() == result.tobytes()
    np.testing.assert_array_equal(cache, attention.cache)


def test_steps_of_no_tokens_and_sequences_of_none():
    attention = Attention(4, 2, 16)
    data = attention.random(np.random.default_rng(9), 5)
    assert attention.step([make_sequence(0, 0, data, 0)])[0].shape == (0, 64)
    results = attention.step([make_sequence(slot, 0, data, count) for slot, count in ((2, 0), (0, 5), (1, 0))])
    assert largest(results[1], expected(attention, data, 0)) < TOLERANCE


BAD_STEPS = {
    "slot": ({"slots": [3, 1]}, "slot 3 is not among 3"),
    "negative slot": ({"slots": [-1, 1]}, "slot -1 is not among 3"),
    "slot twice": ({"slots": [1, 1]}, "sequence 1 of the step: slot 1 is in use by another"),
    "negative past": ({"past": [0, -1]}, "2 tokens after -1 exceed"),
    "past": ({"past": [0, 63]}, "2 tokens after 63 exceed the 64"),
    "large past": ({"past": [0, 2**31 - 1]}, "2 tokens after 2147483647 exceed"),
    "start": ({"cu_seqlens": [1, 3, 5]}, "does not go from 0 to the number of tokens, 5"),
    "end": ({"cu_seqlens": [0, 3, 6]}, "does not go from 0 to the number of tokens, 5"),
    "descent": ({"cu_seqlens": [0, 6, 5]}, "cu_seqlens descends at sequence 1"),
    "lengths": ({"cu_seqlens": [0, 5]}, r"cu_seqlens has shape \[2\], not \[3\]"),
    "pasts": ({"past": [0]}, r"cu_seqlens has shape \[3\], not \[2\]"),
    "tables of unequal length": ({"slots": [0, 1, 2]}, r"slots has shape \[3\], not \[2\]"),
    "a slot of a table twice": (
        {"slots": [0, 0, 1, 2], "past": [63, 3], "cos": np.zeros((128, 8)), "sin": np.zeros((128, 8))},
        "sequence 0 of the step: slot 0 is in use by another, and one of the two writes to it",
    ),
    "a slot of a table outside": (
        {"slots": [0, 3, 1, 2], "past": [63, 3], "cos": np.zeros((128, 8)), "sin": np.zeros((128, 8))},
        "sequence 0 of the step: slot 3 is not among 3",
    ),
    "keys": ({"keys": np.zeros((4, 32), np.float32)}, r"keys has shape \[4, 32\], not \[5, 32\]"),
    "values": ({"values": np.zeros((5, 16), np.float32)}, r"values has shape \[5, 16\], not \[5, 32\]"),
    "queries": ({"queries": np.zeros((5, 4 * 24), np.float32)}, "not a multiple of 16"),
    "wide tables": (
        {name: np.zeros((64, 9), np.float32) for name in ("cos", "sin")},
        "cos has 9 pairs, which heads of size 16 do not have",
    ),
    "empty tables": ({name: np.zeros((64, 0), np.float32) for name in ("cos", "sin")}, "cos has 0 pairs"),
    "tables": ({"sin": np.zeros((64, 4), np.float32)}, r"sin has shape \[64, 4\], not \[64, 8\]"),
    "short tables": ({name: np.zeros((4, 8), np.float32) for name in ("cos", "sin")}, "3 tokens after 2 exceed the 4"),
    "block": ({"cache": np.zeros((3, 2, 4, 100), np.uint8)}, "blocks of 100 bytes"),
    "heads of the cache": ({"cache": np.zeros((3, 4, 4, 2048), np.uint8)}, "cache is not"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STEPS.values(), ids=list(BAD_STEPS))
def test_a_step_outside_the_cache_is_an_error_and_writes_nothing(change, message):
    attention = Attention(4, 2, 16, context=64)
    data = attention.random(np.random.default_rng(10), 5)
    first, second = make_sequence(0, 2, data, 3), make_sequence(1, 3, data, 2)
    feeds = attention.feeds([first, second]) | {"cache": attention.cache}
    for name, value in change.items():
        feeds[name] = np.asarray(value, feeds[name].dtype)
    with pytest.raises(Exception, match=f"attention.*{message}"):
        attention.session.run(None, feeds)
    if "cache" not in change:
        with pytest.raises(Exception, match=message):
            attention.run({name: array for name, array in feeds.items() if name != "cache"}, [5])
    assert (attention.cache == 0xFF).all()


@pytest.mark.parametrize("attributes", [{"heads": 3, "kv_heads": 2}, {"heads": 0, "kv_heads": 1}])
def test_head_counts_that_do_not_fit_are_refused_at_load(attributes):
    with pytest.raises(Exception, match=r"attention.*num_heads"):
        open_session(make_model(**attributes))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ({"window": -1}, "window is out of range"),
        ({"window": 2**31}, "window is out of range"),
        ({"softcap": -1.0}, "softcap or scale"),
        ({"softcap": float("inf")}, "softcap or scale"),
        ({"scale": float("nan")}, "softcap or scale"),
    ],
    ids=str,
)
def test_attributes_that_mean_nothing_are_refused_at_load(attribute, message):
    with pytest.raises(Exception, match=f"attention.*{message}"):
        open_session(make_model(2, 1, **attribute))


def test_one_rotary_table_alone_is_refused():
    attention = Attention(2, 1, 16)
    model = make_model(2, 1)
    model.graph.node[0].input[7] = ""
    del model.graph.input[7]
    feeds = attention.feeds([make_sequence(0, 0, attention.random(np.random.default_rng(0), 3), 3)])
    del feeds["sin"]
    with pytest.raises(Exception, match="only one of cos and sin"):
        open_session(model).run(None, feeds | {"cache": attention.cache})


def test_the_op_needs_the_library():
    with pytest.raises(Exception, match=DOMAIN):
        open_session(make_model(2, 1), kernels=False)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", "sse9")
    with pytest.raises(Exception, match="sse9"):
        Attention(2, 1, 16)
