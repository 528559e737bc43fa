"""The bound on the text of a token: never less than a token takes, and there only where there is one."""

import threading
import time
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hebbline.artifacts import InputError
from hebbline.runtime.tokenizer import NORMALIZED_SHRINKAGE, bytes_per_token, encode

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def bytes_bpe(words=(), **options) -> Tokenizer:
    """Byte-level BPE; each word is a merge of two letters of the alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(word[0], word[1]) for word in words], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fallback_bpe() -> Tokenizer:
    """Characters with a fall-back to bytes, as of Llama 2."""
    words = ["<unk>", *BYTES, "▁", "a", "b", "▁▁", "ab"]
    tokenizer = Tokenizer(
        models.BPE(
            {word: number for number, word in enumerate(words)},
            [("▁", "▁"), ("a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def unigram() -> Tokenizer:
    words = [("<unk>", 0.0), *((byte, -9.0) for byte in BYTES), ("▁a", -1.0), ("a", -2.0), ("bb", -2.0)]
    tokenizer = Tokenizer(models.Unigram(words, 0, True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def normalized(*steps) -> Tokenizer:
    tokenizer = bytes_bpe(["aa", "ĠĠ"])
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer


def with_added(**options) -> Tokenizer:
    tokenizer = bytes_bpe()
    tokenizer.add_tokens([AddedToken("<|a long one|>", **options)])
    return tokenizer


BOUNDED = {
    "bytes": (bytes_bpe(), 1),
    "bytes with merges": (bytes_bpe(["aa", "ĠĠ"]), 2),
    "fall-back": (fallback_bpe(), 6),
    "unigram": (unigram(), 6),
    "nfc": (normalized(normalizers.NFC()), 2 * NORMALIZED_SHRINKAGE),
    "nfkc": (normalized(normalizers.NFKC()), 2 * NORMALIZED_SHRINKAGE),
    "lower case": (normalized(normalizers.NFC(), normalizers.Lowercase()), 2 * NORMALIZED_SHRINKAGE**2),
    "replaced": (normalized(normalizers.Replace("aaaa", "b")), 8),
    "added token": (with_added(), 14),
}
letters = st.text("ab ▁<|>long\U0001d433K\u0301\u1100\u1161ﷺ\u212a\u1fef\n") | st.text()


@pytest.mark.parametrize("name", BOUNDED)
def test_the_bound_of_each_kind(name):
    tokenizer, expected = BOUNDED[name]
    assert bytes_per_token(tokenizer) == expected


@relaxed
@given(st.sampled_from(sorted(BOUNDED)), letters)
def test_no_text_has_fewer_tokens_than_the_bound_says(name, text):
    tokenizer, _ = BOUNDED[name]
    assert len(text.encode()) <= bytes_per_token(tokenizer) * len(encode(tokenizer, text, 10**6))


def test_the_bound_is_reached(tokenizer):
    backend = tokenizer.backend_tokenizer
    longest = max((backend.decode([token]) for token in range(len(tokenizer))), key=lambda text: len(text.encode()))
    assert bytes_per_token(backend) >= len(longest.encode())
    assert bytes_per_token(bytes_bpe(["aa"])) * len(encode(bytes_bpe(["aa"]), "aa" * 50, 50)) == 100
    kelvin = normalized(normalizers.NFKC())
    assert len(encode(kelvin, "\U0001d41a" * 20, 10)) == 10  # 80 bytes become 20, and these 10 tokens


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_no_character_shrinks_more_than_assumed(form):
    for number in range(0x110000):
        if 0xD800 <= number < 0xE000:
            continue
        normal = unicodedata.normalize(form, chr(number))
        assert len(chr(number).encode()) <= NORMALIZED_SHRINKAGE * len(normal.encode())


def words(pre_tokenizer=None, normalizer=None) -> Tokenizer:
    tokenizer = bytes_bpe()
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, pre_tokenizers.ByteLevel()])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


UNBOUNDED = {
    "white space is dropped": words(pre_tokenizers.WhitespaceSplit()),
    "a split that removes": words(pre_tokenizers.Split(" ", "removed")),
    "punctuation is removed": words(pre_tokenizers.Punctuation("removed")),
    "text is stripped": words(normalizer=normalizers.Strip()),
    "accents are stripped": words(normalizer=normalizers.StripAccents()),
    "text is replaced by nothing": words(normalizer=normalizers.Replace("a", "")),
    "added token strips to the left": with_added(lstrip=True),
    "added token strips to the right": with_added(rstrip=True),
    "words": Tokenizer(models.WordLevel({"a": 0}, "a")),
    "word pieces": Tokenizer(models.WordPiece({"a": 0}, unk_token="a")),
    "unknown characters are dropped": Tokenizer(models.BPE({"a": 0}, [])),
    "unknown characters are one": Tokenizer(models.BPE({"a": 0}, [], unk_token="a", fuse_unk=True)),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_where_text_can_vanish_there_is_no_bound(name):
    assert bytes_per_token(UNBOUNDED[name]) is None


def test_the_tokens_are_those_of_the_tokenizer(tokenizer):
    text = "the quick brown fox — naïve 日本語 <|endoftext|>"
    assert list(encode(tokenizer.backend_tokenizer, text, 100)) == tokenizer(text)["input_ids"]


def test_other_threads_run_while_a_long_text_is_read(tokenizer):
    """As the one that makes tokens for all requests must."""
    text = "the quick brown fox jumps over 12 lazy dogs. " * 20_000
    ticks, ended = [], threading.Event()

    def tick():
        while not ended.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.perf_counter()
    encode(tokenizer.backend_tokenizer, text, 10**6)
    elapsed = time.perf_counter() - started
    ended.set()
    ticker.join()
    longest = max(later - earlier for earlier, later in pairwise([started, *ticks, started + elapsed]))
    assert longest < elapsed / 2


def test_more_tokens_than_may_be_are_refused():
    with pytest.raises(InputError, match="the prompt has 11 tokens, more than the context of 10 tokens"):
        encode(bytes_bpe(), "a" * 11, 10)
