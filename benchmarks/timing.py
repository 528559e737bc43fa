"""Interleaved timing: every candidate in every round, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

ROUNDS = 7
SECONDS_A_ROUND = 0.03
SPINNING_SECONDS = 0.1
"""Threads of a pool of ONNX Runtime's wait for more work so long at most, and keep a core busy while they do."""


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, settle: float = 0.0
) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    A candidate is called once to warm up, then in each round as often as fills `SECONDS_A_ROUND`, right after calls
    that are not counted: one, which brings its own data back into the caches, and more until `settle` is over.

    Args:
        candidates: what to time, by name.
        rounds: of all candidates; the median is over these.
        settle: seconds; `SPINNING_SECONDS` where candidates have thread pools of their own, or the idle threads of
            one take the time of the next.
    """
    calls = {name: _calls_a_round(call) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            _call_for(settle, call)
            started = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.perf_counter() - started) / calls[name])
    return {name: median(times) for name, times in seconds.items()}


def _call_for(seconds: float, call: Callable[[], object]) -> None:
    """Once, and again until the time is over."""
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


def _calls_a_round(call: Callable[[], object]) -> int:
    call()
    started = time.perf_counter()
    call()
    return max(1, int(SECONDS_A_ROUND / (time.perf_counter() - started)))
