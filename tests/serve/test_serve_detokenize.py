import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hebbline.serve.detokenize import Detokenizer, StopStrings

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces(tokenizer, ids, context=()):
    detokenizer = Detokenizer(tokenizer, context)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@relaxed
@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_add_up_to_the_whole_decode(byte_tokenizer, ids):
    assert "".join(pieces(byte_tokenizer, ids)) == byte_tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(12))
def test_long_runs_of_bytes_that_are_no_text_add_up_too_in_bounded_steps(byte_tokenizer, seed):
    """Among them some whole characters, wherever the window is cut."""
    generator = np.random.default_rng(seed)
    character = byte_tokenizer.encode("\U0001f600é").ids
    broken = [token for token in range(256) if byte_tokenizer.decode([token]) == "\ufffd"]
    ids = []
    while len(ids) < 600:
        ids += character if generator.random() < 0.1 else [broken[generator.integers(len(broken))]]
    detokenizer = Detokenizer(byte_tokenizer)
    text = ""
    for token in ids:
        text += detokenizer.push(token)
        assert len(detokenizer._window) <= 64
    assert text + detokenizer.flush() == byte_tokenizer.decode(ids)


def test_special_tokens_are_not_kept(byte_tokenizer):
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.add_special_tokens(["<s>"])
    special, letter = tokenizer.token_to_id("<s>"), tokenizer.encode("a").ids[0]
    detokenizer = Detokenizer(tokenizer, [special] * 20)
    assert [detokenizer.push(token) for token in [special, letter] * 200] == ["", "a"] * 200
    for _ in range(500):
        detokenizer.push(special)
    assert len(detokenizer._window) < 20


@relaxed
@given(st.text(max_size=30))
def test_text_comes_in_whole_characters(byte_tokenizer, text):
    result = pieces(byte_tokenizer, byte_tokenizer.encode(text).ids)
    assert "".join(result) == text
    assert all("\ufffd" not in piece for piece in result) or "\ufffd" in text


def test_a_character_comes_with_its_last_byte(byte_tokenizer):
    assert pieces(byte_tokenizer, byte_tokenizer.encode("a€b").ids) == ["a", "", "", "€", "b", ""]


def test_an_unfinished_character_is_flushed_as_a_replacement(byte_tokenizer):
    assert pieces(byte_tokenizer, byte_tokenizer.encode("€").ids[:2]) == ["", "", "\ufffd"]


def test_a_character_that_the_prompt_began_is_finished(byte_tokenizer):
    ids = byte_tokenizer.encode("€").ids
    assert "".join(pieces(byte_tokenizer, ids[1:], context=ids[:1])) == "€"


def test_the_real_tokenizer(tokenizer):
    backend = tokenizer.backend_tokenizer
    ids = backend.encode("naïve 日本語 — “quoted” 🙂🙃 end.").ids
    assert "".join(pieces(backend, ids)) == backend.decode(ids)


@pytest.fixture
def metaspace():
    words = ["▁the", "▁quick", "▁fox", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "▁the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def test_leading_spaces_survive_between_pieces_and_after_a_prompt(metaspace):
    assert pieces(metaspace, [0, 1, 2]) == ["the", " quick", " fox", ""]
    assert pieces(metaspace, [1, 2], context=[0]) == [" quick", " fox", ""]


def test_byte_fallback_characters_are_whole(metaspace):
    assert pieces(metaspace, [0, 3, 4, 5, 1]) == ["the", "", "", "€", " quick", ""]


def run_stop(stop, parts):
    matcher = StopStrings(stop)
    shown = ""
    for part in parts:
        text, matched = matcher.push(part)
        shown += text
        if matched:
            return shown, True
    return shown + matcher.flush(), False


def expected_cut(stop, text):
    """By definition: the stop string whose end comes first, the longest of them where several end together."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(stops, st.lists(st.text("abc", max_size=4), max_size=8))
def test_stop_strings_cut_the_same_however_the_text_is_split(stop, parts):
    assert run_stop(stop, parts) == expected_cut(stop, "".join(parts))


@given(stops, st.lists(st.text("abc", max_size=4), max_size=8))
def test_what_is_shown_is_never_taken_back_and_never_late(stop, parts):
    matcher, text = StopStrings(stop), ""
    shown = ""
    for part in parts:
        text += part
        piece, matched = matcher.push(part)
        shown += piece
        assert text.startswith(shown)
        if matched:
            return
        held = text[len(shown) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stop)
