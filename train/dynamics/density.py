"""How density and the removed fraction change over the updates."""

import math
from collections.abc import Callable

from ...artifacts import InputError

_SIGMOID_STEEPNESS = 6.0


def density_schedule(kind: str, initial: float, final: float, updates: int) -> list[float]:
    """Target densities at updates 0 .. `updates`.

    "sigmoid": the decay of CHTss (arXiv 2501.19107); "cubic": gradual pruning as in GMP and GraNet
    (arXiv 1710.01878, equation 1); "linear".

    Raises:
        InputError: an unknown kind, a density outside (0, 1], or `updates` below 1.
    """
    if kind not in SCHEDULES:
        raise InputError(f"schedule '{kind}' is none of {', '.join(SCHEDULES)}")
    for density in (initial, final):
        if not 0 < density <= 1:
            raise InputError(f"density {density} is outside (0, 1]")
    if updates < 1:
        raise InputError(f"a density schedule needs at least 1 update, not {updates}")
    progress = SCHEDULES[kind]
    return [initial + (final - initial) * progress(update / updates) for update in range(updates + 1)]


def _sigmoid(x: float) -> float:
    """Runs from 0 at x = 0 to 1 at x = 1, steepest in the middle."""

    def logistic(t: float) -> float:
        return 1 / (1 + math.exp(-_SIGMOID_STEEPNESS * (2 * t - 1)))

    return (logistic(x) - 0.5) / (logistic(1) - logistic(0)) + 0.5


def _cubic(x: float) -> float:
    return 1 - (1 - x) ** 3


def _linear(x: float) -> float:
    return x


SCHEDULES: dict[str, Callable[[float], float]] = {"sigmoid": _sigmoid, "cubic": _cubic, "linear": _linear}


def removal_fraction(kind: str, initial: float, progress: float) -> float:
    """The share of links to remove at `progress` x in [0, 1]: "cosine", initial / 2 (1 + cos(pi x)), or "constant"."""
    return initial / 2 * (1 + math.cos(math.pi * progress)) if kind == "cosine" else initial
