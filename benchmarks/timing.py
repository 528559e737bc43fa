"""Interleaved timing: every candidate in every round, so that what disturbs the machine disturbs all alike."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import median

ROUNDS = 7
SECONDS_A_ROUND = 0.03
MOST_SECONDS = 10.0
"""Begin no further round after so many: slow candidates are timed less often instead of for minutes."""
_LONG_CALL_SECONDS = 0.3
"""A call that takes so long needs no warming up: what the caches hold is a thousandth of what it reads."""
_SPINNING_SECONDS = 0.1
"""Threads of a pool of ONNX Runtime's wait for more work so long at most, and keep a core busy while they do."""


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    threads: int = 1,
    most_seconds: float = MOST_SECONDS,
) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    A candidate is called twice to begin with, then in each round as often as fills `SECONDS_A_ROUND`, right after
    `warm_up`; one that takes long, once, and in each round once.

    Args:
        candidates: what to time, by name.
        rounds: of all candidates at most; the median is over these.
        threads: that each candidate uses.
        most_seconds: begin no round after the first when so many are over, or `MOST_SECONDS` are.
    """
    end = time.perf_counter() + min(most_seconds, MOST_SECONDS)
    one_call = {name: _seconds_of_a_call(call) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for done in range(rounds):
        if done and time.perf_counter() > end:
            break
        for name, call in candidates.items():
            if threads > 1 or one_call[name] < _LONG_CALL_SECONDS:
                warm_up(call, threads)
            calls = max(1, int(SECONDS_A_ROUND / one_call[name]))
            started = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - started) / calls)
    return {name: median(times) for name, times in seconds.items()}


def warm_up(call: Callable[[], object], threads: int) -> None:
    """Call once, which brings the data of a candidate back into the caches.

    With several threads call until those of the last candidate, which have no work any more, have fallen asleep.
    """
    end = time.perf_counter() + (_SPINNING_SECONDS if threads > 1 else 0.0)
    call()
    while time.perf_counter() < end:
        call()


def _seconds_of_a_call(call: Callable[[], object]) -> float:
    """Of the second call, as the first one finds memory that was never touched; of the first where it is long."""
    seconds = math.inf
    for _ in range(2):
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        if seconds > _LONG_CALL_SECONDS:
            break
    return seconds
