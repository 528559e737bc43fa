"""Whether the model's process has stopped getting anywhere, as one does whose step never returns.

The launcher's probe cannot see this: its requests are refused before the scheduler. Here it is seen that open requests
get no event, neither a token nor an end, while the process computes nothing.
"""

import time
from collections.abc import Callable

STALLED_SECONDS = 8.0
"""Open requests may be without any event for so long, and longer where the process computes: it may read a very long
prompt."""
BUSY_SECONDS = 300.0
"""They may be without any event for so long in any case."""
BUSY_SHARE = 0.05
"""Of a processor: a process that uses more is computing."""
LONGEST_STEP = 2.0
"""Seconds that count at most between two looks. More have passed where all of the process, or the machine, was stopped,
and then nothing could have been done."""


class StallWatch:
    """Look at it a few times a minute or more; each look says whether it is time to give up.

    Args:
        open_requests: how many requests have been submitted and not ended.
        events: how many tokens and ends there have been in all.
        clock: seconds that pass.
        cpu_clock: seconds of a processor that this process has used.
    """

    def __init__(
        self,
        open_requests: Callable[[], int],
        events: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._open_requests, self._events = open_requests, events
        self._clock, self._cpu_clock = clock, cpu_clock
        self._looked = clock()
        self._seen = -1
        self._without = 0.0
        self._cpu_before = 0.0

    @property
    def seconds(self) -> float:
        """For how long open requests have had no event, as of the last look."""
        return self._without

    def is_stalled(self) -> bool:
        """Look, and say whether open requests have waited in vain for too long."""
        now, events = self._clock(), self._events()
        step, self._looked = min(now - self._looked, LONGEST_STEP), now
        if events != self._seen or not self._open_requests():
            self._seen, self._without, self._cpu_before = events, 0.0, self._cpu_clock()
            return False
        self._without += step
        is_busy = self._cpu_clock() - self._cpu_before > BUSY_SHARE * self._without
        return self._without >= (BUSY_SECONDS if is_busy else STALLED_SECONDS)
