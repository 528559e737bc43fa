"""Which tokens may be drawn, and how likely each is: temperature, min-p, top-k and top-p, without sorting a vocabulary.

Logits are looked at in float32, which is fast, only to find the few tokens that can matter. What decides (the edge of a
set, the number that is drawn) is computed in float64.

Legend: V vocabulary, N tokens that may matter.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels.sampling import add_up, find, keep_largest, nucleus, weigh
from .draws import Distribution, FewTokens, ManyTokens

COLUMN = 64
"""Logits of which one maximum is taken to find a bound for top-k."""
SPARSE = 8
"""One in so many of the vocabulary: with more candidates than that, all tokens are treated as such."""
NUCLEUS_TEMPERATURES = (1e-6, 1e6)
"""Beyond, tokens that differ have weights that do not, or the other way round."""


class Filters(Protocol):
    """The sampling parameters that are used here; `SamplingParameters` has them."""

    @property
    def temperature(self) -> float:
        """Above 0."""

    @property
    def top_k(self) -> int:
        """0: off."""

    @property
    def top_p(self) -> float:
        """1: off."""

    @property
    def min_p(self) -> float:
        """0: off."""


def distribution(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> Distribution:
    """What may be drawn from logits [V], of which `peak` is the largest, and finite.

    The temperature comes first, then min-p, top-k and top-p, each within what the one before it left. Equal logits at
    the edge of a set are kept by the lowest token id.
    """
    if filters.top_k == 0 and filters.min_p == 0:
        if filters.top_p == 1:
            return _whole(logits_V, peak, filters.temperature)
        found = _nucleus(logits_V, peak, filters.temperature, filters.top_p)
        if found is not None:
            return found
    with np.errstate(over="ignore"):  # what is so far below the peak is negative infinity
        return _of_candidates(logits_V, peak, filters)


def _whole(logits_V: NDArray[np.float32], peak: np.float32, temperature: float) -> ManyTokens:
    sums_B, _ = add_up(logits_V, peak, temperature, -math.inf)
    return ManyTokens(logits_V, peak, temperature, sums_B, -math.inf, np.empty(0, np.intp))


def _nucleus(logits_V: NDArray[np.float32], peak: np.float32, temperature: float, top_p: float) -> Distribution | None:
    """The nucleus, where a way that looks at few tokens finds it."""
    least, most = NUCLEUS_TEMPERATURES
    found = nucleus(logits_V, peak, temperature, top_p) if least <= temperature <= most else None
    if found is None:
        return None
    if found.above is None or found.sums_B is None:
        return FewTokens(found.ids_N, found.weights_N)
    return ManyTokens(logits_V, peak, temperature, found.sums_B, found.above, found.ids_N)


def _of_candidates(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> FewTokens:
    ids_N = _contenders(logits_V, peak, filters)
    logits_N = logits_V[ids_N]
    weights_N = weigh(logits_N, peak, filters.temperature)
    if filters.min_p > 0:
        weights_N[weights_N < filters.min_p] = 0.0
    if 0 < filters.top_k < len(weights_N):
        weights_N *= _top_k(_shifted(logits_N, peak, filters.temperature), filters.top_k)
    if filters.top_p < 1:
        weights_N *= keep_largest(weights_N, 0.0, filters.top_p * float(weights_N.sum()))
    return FewTokens(ids_N, weights_N)


def _shifted(logits_N: NDArray[np.float32], peak: np.float32, temperature: float) -> NDArray[np.float64]:
    shifted_N = logits_N.astype(np.float64)
    shifted_N -= float(peak)
    shifted_N /= temperature
    return shifted_N


def _contenders(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> NDArray[np.intp]:
    """The tokens that min-p and top-k may keep, and perhaps others."""
    bound = max(_min_p_bound(peak, filters), _top_k_bound(logits_V, peak, filters.top_k))
    ids_N = None
    if bound > -math.inf:
        edge = np.nextafter(np.float32(bound), np.float32(-math.inf))
        ids_N = find(logits_V, float(edge), math.inf, len(logits_V) // SPARSE)
    return np.arange(len(logits_V)) if ids_N is None else ids_N


def _min_p_bound(peak: np.float32, filters: Filters) -> float:
    """No token below this logit has `min_p` of the likeliest one's probability."""
    if filters.min_p == 0:
        return -math.inf
    distance = filters.temperature * math.log(filters.min_p)
    return float(peak) + distance - 1e-12 * (abs(float(peak)) - distance)


def _top_k_bound(logits_V: NDArray[np.float32], peak: np.float32, k: int) -> float:
    """At least k tokens have this logit or a larger one.

    It is the k-th largest of the maxima of columns of logits: k columns have each a token that reaches it.
    """
    columns = len(logits_V) // COLUMN
    if not 0 < k <= columns:
        return -math.inf
    maxima = logits_V[: columns * COLUMN].reshape(COLUMN, columns).max(axis=0)
    bound = float(np.partition(maxima, -k)[-k])
    # Logits that differ may be equal in float64 once the peak is subtracted: those count as reaching the bound too.
    return bound - 2.0**-50 * (float(peak) - bound) if math.isfinite(bound) else -math.inf


def _top_k(shifted_N: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    edge = np.partition(shifted_N, -k)[-k]
    kept_N = shifted_N > edge
    kept_N[np.flatnonzero(shifted_N == edge)[: k - int(np.count_nonzero(kept_N))]] = True
    return kept_N
