"""Coefficients that are not negative, fitted to measured times by least squares of relative errors.

Legend: S samples, T terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ...kernels.cost import BASELINE, predict
from .ledger import Sample

_SWEEPS = 20_000
_CONVERGED = 1e-12

Coefficients = tuple[float, ...]
"""Nanoseconds of each of `kernels.cost.TERMS`."""


@dataclass(frozen=True)
class Fit:
    """A table of `kernels.cost`: of ONNX Runtime's dense product, and of each family and type of values."""

    table: str
    baseline: Coefficients
    families: dict[tuple[str, str], Coefficients]


@dataclass(frozen=True)
class _Target:
    """A sample, its microseconds, and how much its error counts.

    That is the least time of any family over its own: a family needs no good prediction where it is not worth taking.
    """

    sample: Sample
    microseconds: float
    weight: float


def fit(table: str, samples: Sequence[Sample]) -> Fit:
    """Fit every row of a table; InputError where the library has none of that name."""
    usual = usual_dense(samples)
    dense = [_Target(sample, usual[dense_key(sample)], 1.0) for sample in _one_each(samples)]
    groups: dict[tuple[str, str], list[_Target]] = {}
    fastest = fastest_times(samples)
    for sample in samples:
        target = _Target(sample, sample.us, fastest[sample.layer] / sample.us)
        groups.setdefault((sample.family, sample.values), []).append(target)
    families = {key: _fit_group(table, group, key[0]) for key, group in sorted(groups.items())}
    return Fit(table, _fit_group(table, dense, BASELINE), families)


def usual_dense(samples: Sequence[Sample]) -> dict[tuple, float]:
    """Median microseconds of the dense layer of each shape, number of tokens and place of the weight.

    Dense layers wait for memory, which others draw on too: one time says how fast it was at that moment, these how fast
    it is as a rule. What computes takes the same time always, since it is the thread's own that is counted.
    """
    times: dict[tuple, list[float]] = {}
    for sample in samples:
        times.setdefault(dense_key(sample), []).append(sample.dense_us)
    return {key: median(values) for key, values in times.items()}


def _one_each(samples: Sequence[Sample]) -> list[Sample]:
    """A sample of each dense layer that was timed."""
    return list({dense_key(sample): sample for sample in samples}.values())


def fastest_times(samples: Sequence[Sample]) -> dict[tuple, float]:
    """Of each layer, the least time of any family."""
    least: dict[tuple, float] = {}
    for sample in samples:
        least[sample.layer] = min(sample.us, least.get(sample.layer, np.inf))
    return least


def dense_key(sample: Sample) -> tuple:
    """What dense layers that take the same time have in common."""
    return sample.out_features, sample.in_features, sample.tokens, sample.cached


def _fit_group(table: str, group: Sequence[_Target], family: str) -> Coefficients:
    amounts_ST = np.array(
        [
            predict(target.sample.work, target.sample.tokens, table, family, cached=target.sample.cached).amounts
            for target in group
        ]
    )
    weights_S = np.array([target.weight for target in group])
    relative_ST = amounts_ST * (weights_S / [target.microseconds for target in group])[:, None]
    return tuple(float(f"{value:.4g}") for value in 1e3 * non_negative(relative_ST, weights_S))


def non_negative(a_ST: NDArray[np.float64], b_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """x [T] >= 0 of the least |A x - b|, by descent along one coordinate after another.

    The problem is convex, so that the descent ends at its least value (Franc, Hlaváč and Navara, "Sequential
    coordinate-wise algorithm for the non-negative least squares problem", CAIP 2005).
    """
    scale_T = np.maximum(np.linalg.norm(a_ST, axis=0), 1e-300)
    scaled_ST = a_ST / scale_T
    gram_TT, right_T = scaled_ST.T @ scaled_ST, scaled_ST.T @ b_S
    x_T = np.zeros(a_ST.shape[1])
    used = [term for term in range(len(x_T)) if gram_TT[term, term] > 0]
    for _ in range(_SWEEPS):
        moved = 0.0
        for term in used:
            to = max(0.0, x_T[term] - (gram_TT[term] @ x_T - right_T[term]) / gram_TT[term, term])
            moved, x_T[term] = max(moved, abs(to - x_T[term])), to
        if moved < _CONVERGED:
            break
    return x_T / scale_T
