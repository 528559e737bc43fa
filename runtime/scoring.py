"""Log-probabilities of given tokens: what perplexity and `return_prompt_log_probs` are made of.

Legend: T tokens of a text, N rows of logits, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..artifacts import InputError
from .runner import Runner

LOGITS_BYTES = 16 << 20
"""The most that the float32 logits of one step may take when every row is wanted."""


def token_log_probs(logits_NV: NDArray[np.float32], targets_N: Sequence[int]) -> NDArray[np.float64]:
    """Natural-log probability of one token a row: a log-softmax in float64; returns [N]."""
    logits = np.asarray(logits_NV, np.float64)
    peak_N = logits.max(axis=1)
    normalizer_N = peak_N + np.log(np.exp(logits - peak_N[:, None]).sum(axis=1))
    return logits[np.arange(len(logits)), np.asarray(targets_N)] - normalizer_N


def scored_chunk(vocab_size: int, chunk: int) -> int:
    """The number of tokens a step may take when the logits of all of them are wanted, at most `chunk`."""
    return max(1, min(chunk, LOGITS_BYTES // (4 * vocab_size)))


def log_probs(runner: Runner, ids_T: Sequence[int], *, slot: int = 0, chunk: int = 128) -> NDArray[np.float64]:
    """Natural-log probability of each token after the first, given all before it; returns [T - 1].

    Args:
        runner: any runner; what `slot` holds is overwritten.
        ids_T: the tokens of the text.
        slot: the cache to use.
        chunk: the most tokens a step takes; smaller where `LOGITS_BYTES` asks for it.

    Raises:
        InputError: the text has no token to score, or does not fit the context.
    """
    ids = [int(token) for token in ids_T]
    if len(ids) < 2:
        raise InputError(f"a text of {len(ids)} tokens has none to score: it takes at least 2")
    if len(ids) - 1 > runner.context_length:
        raise InputError(f"a text of {len(ids)} tokens does not fit the context of {runner.context_length} tokens")
    inputs, targets = ids[:-1], ids[1:]
    step = scored_chunk(runner.vocab_size, chunk)
    scores = []
    for past in range(0, len(inputs), step):
        ids_S = inputs[past : past + step]
        logits_NV = runner.prefill(slot, ids_S, past, range(len(ids_S)))
        scores.append(token_log_probs(logits_NV, targets[past : past + step]))
    return np.concatenate(scores)
