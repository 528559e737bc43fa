"""Perplexity of a text under anything that gives log-probabilities.

Legend: W windows, S tokens a window.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
