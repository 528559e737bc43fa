"""Learning-rate warm-up after topology updates: new links start at 0, without moments, and the rest settles."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class RateWarmup:
    """Scales an optimizer's learning rates during its step: by k / steps in the k-th step after an update.

    The rates that schedulers see and set are left as they are.
    """

    def __init__(self, steps: int, steps_since_update: Callable[[], int | None]) -> None:
        """`steps_since_update` counts the steps taken since the last update; None where there was none."""
        self._steps = steps
        self._since = steps_since_update
        self._rates: dict[int, list[Any]] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """Act on this optimizer from its next step on."""
        if self._steps:
            optimizer.register_step_pre_hook(self._scale)
            optimizer.register_step_post_hook(self._restore)

    @property
    def factor(self) -> float:
        """Of the next step."""
        since = self._since()
        return 1.0 if since is None or not self._steps else min(1.0, (since + 1) / self._steps)

    def _scale(self, optimizer: Optimizer, *_: Any) -> None:
        self._rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates.pop(id(optimizer)), strict=True):
            group["lr"] = rate
