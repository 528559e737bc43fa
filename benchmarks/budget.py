"""The time that a benchmark may take."""

import math
import time
from dataclasses import dataclass, field

from ..artifacts import InputError


@dataclass(frozen=True)
class Budget:
    """Seconds from now on, in which measurements are begun; None: as many as all of them take.

    Raises:
        InputError: there is no time at all.
    """

    seconds: float | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"--budget {self.seconds:g}: the time must be above 0 seconds")

    def left(self) -> float:
        """Seconds until it is over; infinity where there is no limit, 0 when it is over."""
        if self.seconds is None:
            return math.inf
        return max(0.0, self.began + self.seconds - time.monotonic())


NO_BUDGET = Budget()
