"""Interleaved timing: every candidate in every round, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

ROUNDS = 7
SECONDS_A_ROUND = 0.03


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    A candidate is called once to warm up, then in each round as often as fills `SECONDS_A_ROUND`, right after a call
    that is not counted and that brings its own data back into the caches.

    Args:
        candidates: what to time, by name.
        rounds: of all candidates; the median is over these.
    """
    calls = {name: _calls_a_round(call) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            started = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.perf_counter() - started) / calls[name])
    return {name: median(times) for name, times in seconds.items()}


def _calls_a_round(call: Callable[[], object]) -> int:
    call()
    started = time.perf_counter()
    call()
    return max(1, int(SECONDS_A_ROUND / (time.perf_counter() - started)))
