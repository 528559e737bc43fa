"""How far the outputs of one model are from those of another, over the largest magnitude of each output."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference allowed, over the largest magnitude of an output."""
HALF_FACTOR = 40.0
"""Half precision has so much less: outputs of that type may differ by as much more."""

Arrays = list[NDArray]


def difference(actual: Arrays, expected: Arrays, rounding: Sequence[float] = ()) -> float:
    """Largest difference of any output over its largest magnitude; infinite where shapes or texts differ.

    `rounding` is that of each output of a model, absolute: what differs by less is within `TOLERANCE`. The arrays are
    those outputs once for each input that the model was run on.
    """
    if len(actual) != len(expected):
        return float("inf")
    pairs = zip(actual, expected, _spread(rounding, len(actual)), strict=True)
    return max((_array_difference(a, b, least) for a, b, least in pairs), default=0.0)


def share_off(actual: Arrays, expected: Arrays, allowed: float, rounding: Sequence[float] = ()) -> float:
    """Share of numbers that differ by more than is allowed; 1 where shapes differ."""
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(actual, expected, strict=True)):
        return 1.0
    pairs = zip(actual, expected, _spread(rounding, len(actual)), strict=True)
    off = sum(int((_off(a, b, least) > allowed).sum()) for a, b, least in pairs)
    return off / max(1, sum(array.size for array in expected))


def _spread(rounding: Sequence[float], count: int) -> list[float]:
    """One number an array; none where outputs are no tensors, so that there are more arrays than outputs."""
    if not rounding or count % len(rounding):
        return [0.0] * count
    return list(rounding) * (count // len(rounding))


def _array_difference(actual: NDArray, expected: NDArray, rounding: float) -> float:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    return float(_off(actual, expected, rounding).max(initial=0.0))


def _off(actual: NDArray, expected: NDArray, rounding: float) -> NDArray[np.float64]:
    """Difference of each number over the output's largest magnitude."""
    if actual.dtype.kind not in "fiub":
        return np.where(actual == expected, 0.0, np.inf)
    first, second = actual.astype(np.float64), expected.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    scale = max(np.abs(second[np.isfinite(second)]).max(initial=0.0), rounding / TOLERANCE) or 1.0
    scale *= HALF_FACTOR if actual.dtype == np.float16 else 1.0
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(first - second) / scale)
    return np.where(np.isnan(off), np.inf, off)
