"""The gate of an int8 lm_head: what decides a greedy token must be what the exact lm_head says.

Legend: N rows of logits, V vocabulary.
"""

from collections.abc import Callable

import numpy as np

from ..artifacts import CheckError
from ..serve.engine.runner import Runner

_PROMPTS = 8
_PROMPT_TOKENS = 64


def check_shortlist(exact: Runner, quick: Runner, tolerance: float, progress: Callable[[str], None]) -> float:
    """Compare two runners over the same graph but for its lm_head, after each token of several random prompts.

    Args:
        exact: with the float32 lm_head.
        quick: with the int8 one.
        tolerance: what two float32 computations of a logit may differ by.
        progress: told what is checked.

    Returns:
        The largest difference of any logit, relative to the largest logit of its row.

    Raises:
        CheckError: the best token of a row has another one's logit, or is not one of the exact best.
    """
    progress("the best token of the int8 lm_head against the exact one")
    rng = np.random.default_rng(1)
    length = min(_PROMPT_TOKENS, exact.context_length)
    largest = 0.0
    for _ in range(_PROMPTS):
        ids = rng.integers(0, exact.vocab_size, length).tolist()
        exact_NV = exact.prefill(0, ids, 0, range(length)).copy()
        quick_NV = quick.prefill(0, ids, 0, range(length))
        rows, best_N = np.arange(length), quick_NV.argmax(axis=1)
        missed = float((exact_NV.max(axis=1) - exact_NV[rows, best_N]).max())
        wrong = float(np.abs(quick_NV - exact_NV)[rows, best_N].max())
        # Two tokens may be closer than rounding: then either is right.
        if not (missed <= 2 * tolerance and wrong <= tolerance):
            raise CheckError(
                f"lm_head in int8: a best logit is {missed:.2e} below the exact best and {wrong:.2e} off its own exact "
                "value; export with lm_head in float32. Nothing was published"
            )
        largest = max(largest, float((np.abs(quick_NV - exact_NV) / np.abs(exact_NV).max(axis=1, keepdims=True)).max()))
    return largest
