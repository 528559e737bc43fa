"""From tokens to text as they come: whole characters only, and nothing that may turn out to be a stop string."""

import functools
from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
MAX_PENDING = 3  # an unfinished UTF-8 character is at most three bytes, and a decoder may show each as one replacement
CONTEXT_TOKENS = 8
MOST_TOKENS = 64
"""So many tokens are decoded at a time at most: in a run of bytes that are no text no piece ever ends clean."""


class Detokenizer:
    """Turns a growing list of tokens into pieces of text.

    A piece never ends within a character. The pieces together are the text of all tokens as the tokenizer decodes them
    at once. (A byte-fallback tokenizer shows a run of bytes differently once it proves not to be UTF-8; such a run,
    which no text encodes to, may keep its earlier form.)

    Args:
        tokenizer: as `tokenizers` loads it.
        context_ids: the tokens before the first, so that a tokenizer that drops a leading space keeps it here. Their
            text is not repeated.
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self._window = [int(token) for token in context_ids[-CONTEXT_TOKENS:] if int(token) not in self._special]
        self._last_clean = 0  # the window's tokens from here on gave the last piece, or none yet
        self._emitted = len(_whole_characters(self._decode()))

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, often "" within a character."""
        if int(token) in self._special:
            return ""  # it has no text
        self._window.append(int(token))
        text = self._decode()
        certain = _whole_characters(text)
        piece = certain[self._emitted :]
        if piece:
            self._emitted = len(certain)
        if piece and certain == text:
            self._shorten()
        elif len(self._window) > MOST_TOKENS:
            self._cut(len(text) - self._emitted)
        return piece

    def flush(self) -> str:
        """The rest of the text, at the end of the tokens: replacement characters for an unfinished one."""
        text = self._decode()
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece

    def _shorten(self) -> None:
        """At a character's end, keep only the tokens of the latest piece as context: the cost stays constant."""
        del self._window[: self._last_clean]
        self._last_clean = len(self._window)
        self._emitted = len(self._decode())

    def _cut(self, pending: int) -> None:
        """Leave out the older half of a long window, of whose text the last `pending` characters have not been given.

        Text is aligned at its end: how bytes show depends on the few before them only.
        """
        del self._window[: MOST_TOKENS // 2]
        self._last_clean = 0
        self._emitted = max(0, len(self._decode()) - pending)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window) if self._window else ""


def _whole_characters(text: str) -> str:
    """The text without the replacement characters at its end that later bytes may still complete."""
    for _ in range(MAX_PENDING):
        text = text.removesuffix(REPLACEMENT)
    return text


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that decoding leaves out."""
    return frozenset(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)


class StopStrings:
    """Finds the stop string that completes first, however the text is cut into pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Add text; returns what may be shown now, and whether a stop string ended the text.

        After a match nothing follows: what came after the stop string's beginning is dropped.
        """
        text = self._held + piece
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """The text held back, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
