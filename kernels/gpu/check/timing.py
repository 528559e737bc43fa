"""Times on a GPU: launches recorded in CUDA graphs, weights too many for the cache, competitors in turns.

A decode step reads each weight once, from memory. So a layer is timed over several copies of its weight that together
exceed the GPU's cache, all recorded in one CUDA graph, in which a launch costs no time of the host. Competitors take
turns, and what is reported beside the times is the median of the ratios within a turn.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ROUNDS = 21
_CACHE_FACTOR = 3
_FALLBACK_CACHE_BYTES = 64 << 20


class Replay(Protocol):
    """A recorded sequence of launches."""

    launches: int

    def seconds(self) -> float:
        """Run it once; returns the time on the GPU."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of one launch, of it and of the baseline, and the median of baseline over it within a turn."""

    seconds: float
    baseline_seconds: float
    speedup: float


def compare(baseline: Replay, candidate: Replay, rounds: int = ROUNDS) -> Timing:
    """Time two replays in turns; the first turn, which warms up, does not count."""
    pairs = [
        (baseline.seconds() / baseline.launches, candidate.seconds() / candidate.launches) for _ in range(rounds + 1)
    ]
    base, other = zip(*pairs[1:], strict=True)
    ratios = [b / o for b, o in zip(base, other, strict=True)]
    return Timing(statistics.median(other), statistics.median(base), statistics.median(ratios))


class GraphReplay:
    """Launches recorded in a CUDA graph, one for each copy of a weight.

    Args:
        launches: functions that each launch once on torch's current stream and keep their results.
    """

    def __init__(self, launches: Sequence[Callable[[], Any]]) -> None:
        import torch

        self.launches = len(launches)
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and allocates, which a recording must not
            self._results = [launch() for launch in launches]
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self._graph):
            self._results = [launch() for launch in launches]

    def seconds(self) -> float:
        """See `Replay.seconds`."""
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def copies_beyond_cache(weight_bytes: int, cache_bytes: int | None = None) -> int:
    """How many copies of a weight exceed the GPU's cache several times."""
    if cache_bytes is None:
        import torch

        properties = torch.cuda.get_device_properties(0)
        cache_bytes = getattr(properties, "L2_cache_size", 0) or _FALLBACK_CACHE_BYTES
    return max(2, -(-_CACHE_FACTOR * cache_bytes // max(1, weight_bytes)))
