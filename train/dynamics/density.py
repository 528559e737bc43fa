"""How density and the removed fraction change over the updates, and how density is spread over layers."""

import math
from collections.abc import Callable, Mapping

from ...artifacts import InputError

_SIGMOID_STEEPNESS = 6.0


def density_schedule(kind: str, initial: float, final: float, updates: int, share: float = 1.0) -> list[float]:
    """Target densities at updates 0 .. `updates`; `final` is reached once `share` of the updates have gone by.

    "constant": `final` throughout; "sigmoid": the decay of CHTss (arXiv 2501.19107); "cubic": gradual pruning as in GMP
    and GraNet (arXiv 1710.01878, equation 1); "linear".

    Raises:
        InputError: an unknown kind, a density or `share` outside (0, 1], or `updates` below 1.
    """
    if kind == "constant":
        initial = final
    elif kind not in SCHEDULES:
        raise InputError(f"schedule '{kind}' is none of constant, {', '.join(SCHEDULES)}")
    for density in (initial, final):
        if not 0 < density <= 1:
            raise InputError(f"density {density} is outside (0, 1]")
    if updates < 1:
        raise InputError(f"a density schedule needs at least 1 update, not {updates}")
    if not 0 < share <= 1:
        raise InputError(f"the share of the updates over which density falls, {share}, is outside (0, 1]")
    progress = SCHEDULES.get(kind, _linear)
    return [initial + (final - initial) * progress(min(1.0, update / updates / share)) for update in range(updates + 1)]


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


def erk_densities(
    shapes: Mapping[str, tuple[int, int]], density: float, limits: Mapping[str, float]
) -> dict[str, float]:
    """Erdos-Renyi (for linear layers, ERK) densities: proportional to (N + K) / (N K), together `density`.

    Layers that would exceed their limit are put at it, and the others share what is left (arXiv 1707.04780,
    1911.11134).

    Args:
        shapes: (N, K) by layer name.
        density: links over possible links, of all layers together.
        limits: the most that each layer admits: 1, or less by its structure.

    Raises:
        InputError: the limits do not admit this density.
    """
    links = density * sum(rows * columns for rows, columns in shapes.values())
    most = sum(limits[name] * rows * columns for name, (rows, columns) in shapes.items())
    if links > most * (1 + 1e-9):
        raise InputError(f"sparsity.density {density:g} is infeasible: the structures of the layers admit fewer links")
    full: set[str] = set()
    while True:
        free = {name: shape for name, shape in shapes.items() if name not in full}
        left = links - sum(limits[name] * math.prod(shapes[name]) for name in full)
        scale = left / sum(sum(shape) for shape in free.values()) if free else 0.0
        found = {name: scale * sum(shape) / math.prod(shape) for name, shape in free.items()}
        over = {name for name, value in found.items() if value > limits[name]}
        if not over:
            return {name: limits[name] if name in full else found[name] for name in shapes}
        full |= over
