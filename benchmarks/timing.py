"""Interleaved timing: every candidate in every round, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

ROUNDS = 7
SECONDS_A_ROUND = 0.03
_SPINNING_SECONDS = 0.1
"""Threads of a pool of ONNX Runtime's wait for more work so long at most, and keep a core busy while they do."""


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, threads: int = 1
) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    A candidate is called once to begin with, then in each round as often as fills `SECONDS_A_ROUND`, right after
    `warm_up`.

    Args:
        candidates: what to time, by name.
        rounds: of all candidates; the median is over these.
        threads: that each candidate uses.
    """
    calls = {name: _calls_a_round(call) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            warm_up(call, threads)
            started = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.perf_counter() - started) / calls[name])
    return {name: median(times) for name, times in seconds.items()}


def warm_up(call: Callable[[], object], threads: int) -> None:
    """Call once, which brings the data of a candidate back into the caches.

    With several threads call until those of the last candidate, which have no work any more, have fallen asleep.
    """
    end = time.perf_counter() + (_SPINNING_SECONDS if threads > 1 else 0.0)
    call()
    while time.perf_counter() < end:
        call()


def _calls_a_round(call: Callable[[], object]) -> int:
    call()
    started = time.perf_counter()
    call()
    return max(1, int(SECONDS_A_ROUND / (time.perf_counter() - started)))
