"""The gate of an int8 lm_head: what decides a greedy token must be what the exact lm_head says.

Legend: N rows of logits, V vocabulary.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..artifacts import CheckError
from ..runtime.runner import Runner
from .steps import Logits

_PROMPTS = 8
_PROMPT_TOKENS = 64


def check_shortlist(
    exact: Callable[[], Runner], quick: Callable[[], Runner], tolerance: float, progress: Callable[[str], None]
) -> float:
    """Compare two runners over the same graph but for its lm_head, after each token of several random prompts.

    Args:
        exact: opens the one with the float32 lm_head, which is closed before the other is opened.
        quick: opens the one with the int8 lm_head.
        tolerance: what two float32 computations of a logit may differ by.
        progress: told what is checked.

    Returns:
        The largest difference of any logit, relative to the largest logit of its row.

    Raises:
        CheckError: the best token of a row has another one's logit, or is not one of the exact best.
    """
    progress("the best token of the int8 lm_head against the exact one")
    expected = list(_logits(exact))
    return max(
        _difference(exact_NV, quick_NV, tolerance) for exact_NV, quick_NV in zip(expected, _logits(quick), strict=True)
    )


def _logits(open_runner: Callable[[], Runner]) -> Iterator[Logits]:
    """The logits [N, V] of each prompt, the same prompts every time."""
    runner, rng = open_runner(), np.random.default_rng(1)
    length = min(_PROMPT_TOKENS, runner.context_length)
    for _ in range(_PROMPTS):
        ids = rng.integers(0, runner.vocab_size, length).tolist()
        yield runner.prefill(0, ids, 0, range(length)).copy()


def _difference(exact_NV: Logits, quick_NV: Logits, tolerance: float) -> float:
    """See `check_shortlist`, of one prompt."""
    rows, best_N = np.arange(len(quick_NV)), quick_NV.argmax(axis=1)
    missed = float((exact_NV.max(axis=1) - exact_NV[rows, best_N]).max())
    wrong = float(np.abs(quick_NV - exact_NV)[rows, best_N].max())
    # Two tokens may be closer than rounding: then either is right.
    if not (missed <= 2 * tolerance and wrong <= tolerance):
        raise CheckError(
            f"lm_head in int8: a best logit is {missed:.2e} below the exact best and {wrong:.2e} off its own exact "
            "value; export with lm_head in float32. Nothing was published"
        )
    return float((np.abs(quick_NV - exact_NV) / np.abs(exact_NV).max(axis=1, keepdims=True)).max())
