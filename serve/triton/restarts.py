"""How often a server that dies is started anew, and how soon."""

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Restarts:
    """Back off from one restart to the next, and give a server up that dies again and again.

    Attributes:
        limit: restarts within the window; one more is refused.
        window_seconds: how long a restart counts.
        first_delay: seconds before the second restart of a window; it doubles from there. The first comes at once.
        longest_delay: seconds that a restart is put off at most.
    """

    limit: int = 10
    window_seconds: float = 600.0
    first_delay: float = 0.25
    longest_delay: float = 5.0
    _times: deque[float] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.limit < 0 or min(self.window_seconds, self.first_delay, self.longest_delay) < 0:
            raise ValueError(f"{self}: nothing can be negative")

    def next_delay(self, now: float) -> float | None:
        """Count a restart at `now`, in seconds of a monotonic clock.

        Returns:
            Seconds to wait before it; None where the limit is reached, and it should not be.
        """
        while self._times and now - self._times[0] > self.window_seconds:
            self._times.popleft()
        before = len(self._times)
        if before >= self.limit:
            return None
        self._times.append(now)
        return min(self.longest_delay, self.first_delay * 2 ** (before - 1)) if before else 0.0

    def __str__(self) -> str:
        plural = "" if self.limit == 1 else "s"
        return f"{self.limit} restart{plural} within {self.window_seconds:,.0f} s"
