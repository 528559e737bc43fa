"""Perplexity of a text under anything that gives log-probabilities.

Legend: W windows, S tokens a window.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import InputError

Scorer = Callable[[Sequence[int]], NDArray[np.float64]]
"""From S token ids to the natural-log probability of each after the first, given all before it: float64 [S - 1]."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-probability of `tokens` predicted tokens, and the seconds that it took."""

    value: float
    tokens: int
    seconds: float


class Window(NamedTuple):
    """Tokens to score: the last `predicted` of `ids` count, those before them are only read."""

    ids: Sequence[int]
    predicted: int


def stream_windows(token_ids: Sequence[int], window: int, stride: int) -> list[Window]:
    """Windows over one stream of tokens, in order, that together predict each token after the first at most once.

    This is how perplexity on a whole text such as WikiText-2 is published: window `i` begins at `i * stride`, and of
    its tokens those count that no window before it held. With `stride` equal to `window` they do not overlap, and the
    first token of each is given, not predicted (the form of the papers on pruning and quantisation, with windows of
    2048); a smaller stride gives every predicted token at least `window - stride` tokens to be predicted from.

    Args:
        token_ids: the whole text.
        window: the most tokens of a window, at least 2 and at most the model's context.
        stride: tokens from the beginning of one window to that of the next, from 1 to `window`.

    Raises:
        InputError: a window or a stride outside these bounds, or a text of fewer than two tokens.
    """
    if window < 2:
        raise InputError(f"a window of {window} tokens predicts none; it takes at least 2")
    if not 1 <= stride <= window:
        raise InputError(f"a stride of {stride} tokens is outside [1, {window}], the window")
    if len(token_ids) < 2:
        raise InputError(f"the text has {len(token_ids)} tokens; to score one it takes at least 2")
    windows, seen = [], 0
    for start in range(0, len(token_ids), stride):
        ids = token_ids[start : start + window]
        predicted = min(start + len(ids) - seen, len(ids) - 1)
        if predicted > 0:
            windows.append(Window(ids, predicted))
        seen = start + len(ids)
        if seen == len(token_ids):
            break
    return windows


def stream_perplexity(windows: Iterable[Window], scorer: Scorer) -> Perplexity:
    """Perplexity over the predicted tokens of `stream_windows`."""
    return _summary(scorer(window.ids)[-window.predicted :] for window in windows)


def token_windows(
    tokenizer: Tokenizer, documents: Sequence[str], eos_token_id: int | None, length: int, limit: int | None = None
) -> list[list[int]]:
    """The documents, each ended by the end token where there is one, cut into windows of equal length.

    Args:
        tokenizer: the model's.
        documents: texts.
        eos_token_id: put between documents; None for nothing.
        length: S, at least 2. A remainder shorter than a window is dropped.
        limit: the most windows to return.

    Raises:
        InputError: the text does not fill one window.
    """
    token_ids: list[int] = []
    end = [] if eos_token_id is None else [eos_token_id]
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        token_ids += encoding.ids + end
    windows = [token_ids[start : start + length] for start in range(0, len(token_ids) - length + 1, length)]
    if not windows:
        raise InputError(f"the text has {len(token_ids)} tokens, fewer than one window of {length}")
    return windows[:limit]


def perplexity(windows_WS: Iterable[Sequence[int]], scorer: Scorer) -> Perplexity:
    """Perplexity over windows; the first token of each is given, all others are predicted."""
    return _summary(scorer(window_S) for window_S in windows_WS)


def _summary(scores: Iterator[NDArray[np.float64]]) -> Perplexity:
    started, total, tokens = time.perf_counter(), 0.0, 0
    for log_probs in scores:
        total -= float(log_probs.sum())
        tokens += len(log_probs)
    return Perplexity(math.exp(total / tokens), tokens, time.perf_counter() - started)
