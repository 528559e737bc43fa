"""Which tokens may be drawn, and how likely each is: temperature, min-p, top-k and top-p, without sorting a vocabulary.

A row of logits is looked at in float32, which is fast, only to find the few tokens that can matter. What decides (the
edge of a set, the number that is drawn) is computed in float64; where float32 leaves a doubt, so is the whole row.

Legend: V vocabulary, N tokens that may matter.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels.sampling import BLOCK, add_up, select, split, weigh, weigh_exactly

COLUMN = 64
"""Logits of which one maximum is taken to find a bound for top-k."""
SAMPLE = 2048
"""Tokens that are looked at to guess where the edge of a nucleus lies; a quarter of them say whether it may have many.
"""
REACH, SLACK = 1.5, 4.0
"""A band is this times as wide as a sample says, and so many of the sample wider."""
SMALL = 4096
"""So few weights are sorted faster than they are narrowed down."""
SPARSE = 8
"""One in so many of the vocabulary: with more candidates than that, all tokens are treated as such."""
FEW = 1024
"""So many candidates are looked at one by one without a better guess."""
MARGIN = 1e-3
"""By how much weights that were added up in float32 must be on the safe side."""
FLOAT32_ERROR = 3e-5
"""A bound on the relative error of a weight in float32, and of a sum of them: |exponent| ulps, and some."""
FLOAT32_TEMPERATURES = (1e-30, 1e30)
"""Where the inverse of the temperature keeps the precision of float32."""


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


@dataclass(frozen=True)
class Distribution:
    """Tokens with weights that are in proportion to their probabilities.

    Attributes:
        ids_N: token ids in ascending order; None: all of the vocabulary.
        weights_N: at least 0, in float64. A token that is not in `ids_N` has weight 0.
        kept_N: which of them may be drawn, not all of weight 0; None: all.
        blocks: the sums of the weights that may be drawn, `BLOCK` at a time; None: not yet known.
    """

    ids_N: NDArray[np.intp] | None
    weights_N: NDArray[np.float64]
    kept_N: NDArray[np.bool_] | None = None
    blocks: NDArray[np.float64] | None = None

    def draw(self, uniform: float) -> int:
        """The token at `uniform`, in [0, 1), of the cumulative distribution in the order of token ids."""
        blocks = _block_sums(self.weights_N, self.kept_N) if self.blocks is None else self.blocks
        cumulative = np.cumsum(blocks)
        target = uniform * float(cumulative[-1])
        block = _crossing(blocks, cumulative, target)
        before = float(cumulative[block - 1]) if block else 0.0
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        within = self.weights_N[part] if self.kept_N is None else self.weights_N[part] * self.kept_N[part]
        index = block * BLOCK + _crossing(within, np.cumsum(within), target - before)
        return index if self.ids_N is None else int(self.ids_N[index])


def distribution(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> Distribution:
    """What may be drawn from logits [V], of which `peak` is the largest, and finite.

    The temperature comes first, then min-p, top-k and top-p, each within what the one before it left. Equal logits at
    the edge of a set are kept by the lowest token id.
    """
    with np.errstate(over="ignore"):  # a logit that is so far below the peak has the weight 0
        return _distribution(logits_V, peak, filters)


def _distribution(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> Distribution:
    if filters.top_k == 0 and filters.min_p == 0 and filters.top_p < 1:
        nucleus = _broad_nucleus(logits_V, peak, filters) or _sparse_nucleus(logits_V, peak, filters)
        if nucleus is not None:
            return nucleus
    ids_N = _contenders(logits_V, peak, filters)
    logits_N = logits_V if ids_N is None else logits_V[ids_N]
    weights_N = weigh_exactly(logits_N, peak, filters.temperature)
    if filters.min_p > 0:
        weights_N[weights_N < filters.min_p] = 0.0
    if 0 < filters.top_k < len(weights_N):
        weights_N *= _top_k(_shifted(logits_N, peak, filters.temperature), filters.top_k)
    if filters.top_p < 1:
        return _nucleus_by_band(ids_N, weights_N, filters.top_p) or _nucleus(ids_N, weights_N, filters.top_p)
    return Distribution(ids_N, weights_N)


def _block_sums(weights_N: NDArray[np.float64], kept_N: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Sums of `BLOCK` neighbours, the last ones perhaps fewer; of those that are kept, None: of all."""
    return add_up(weights_N if kept_N is None else weights_N * kept_N)


def _crossing(weights: NDArray, cumulative: NDArray, target: float) -> int:
    """The first index at which the cumulative weight exceeds the target; where rounding leaves none, the last one's."""
    index = int(np.searchsorted(cumulative, target, side="right"))
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


def _shifted(logits_N: NDArray[np.float32], peak: np.float32, temperature: float) -> NDArray[np.float64]:
    shifted_N = logits_N.astype(np.float64)
    shifted_N -= float(peak)
    if temperature != 1:
        shifted_N /= temperature
    return shifted_N


def _contenders(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> NDArray[np.intp] | None:
    """The tokens that min-p and top-k may keep, and perhaps a few others; None where they are many."""
    bound = max(_min_p_bound(peak, filters), _top_k_bound(logits_V, peak, filters.top_k))
    if bound == -math.inf:
        return None
    likely_V = logits_V >= np.nextafter(np.float32(bound), np.float32(-math.inf))
    return np.flatnonzero(likely_V) if np.count_nonzero(likely_V) <= len(logits_V) // SPARSE else None


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


def _nucleus(ids_N: NDArray[np.intp] | None, weights_N: NDArray[np.float64], top_p: float) -> Distribution:
    """The smallest set of the largest weights that has `top_p` of their sum, by sorting all."""
    return Distribution(ids_N, weights_N, _first_to_reach(weights_N, 0.0, top_p * float(weights_N.sum())))


def _broad_nucleus(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> Distribution | None:
    """The nucleus where it seems to be of many tokens, as that of a flat row is; None where it does not.

    Tokens that have less than a share of `1 - top_p` of the mean weight can all be left aside. Where a sample says that
    most have more, the nucleus is likely to be of many.
    """
    if len(logits_V) <= SMALL:
        return None
    sample = weigh_exactly(logits_V[:: len(logits_V) // (SAMPLE // 4)].copy(), peak, filters.temperature)
    if 2 * np.count_nonzero(sample >= (1 - filters.top_p) * sample.mean()) < len(sample):
        return None
    return _nucleus_by_band(None, weigh_exactly(logits_V, peak, filters.temperature), filters.top_p)


def _nucleus_by_band(
    ids_N: NDArray[np.intp] | None, weights_N: NDArray[np.float64], top_p: float
) -> Distribution | None:
    """As `_nucleus`, sorting only a band of weights around the edge; None: it is not there.

    A sample says where the edge may be. What weight is kept with an edge there is then known, and so is how far from
    there the edge must be: that is the band, of a percent of a vocabulary.
    """
    if len(weights_N) <= SMALL:
        return None
    total = float(add_up(weights_N).sum())
    target = top_p * total
    sample, tails = _sampled_tails(weights_N)
    guess = min(int(np.searchsorted(tails, total - target)), len(sample) - 1)
    edge = float(sample[guess])
    above = float(add_up(weights_N, edge).sum())
    distance = REACH * abs(target - above) + SLACK * (tails[guess] - tails[max(guess - 1, 0)])
    if above < target:
        low = float(sample[np.searchsorted(tails, tails[guess] - distance)])
        high = math.nextafter(edge, -math.inf)
    else:
        low = edge
        high = float(sample[min(int(np.searchsorted(tails, tails[guess] + distance)), len(sample) - 1)])
    kept_N, blocks, band = split(weights_N, low, high)
    in_band, above = weights_N[band], float(blocks.sum())
    if not above < target <= above + float(in_band.sum()):
        return None
    first = band[_first_to_reach(in_band, above, target)]
    kept_N[first] = True
    blocks += np.bincount(first // BLOCK, weights_N[first], len(blocks))
    return Distribution(ids_N, weights_N, kept_N, blocks)


def _sampled_tails(weights_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Some of the weights in ascending order, and about how much weight there is in all up to each of them."""
    stride = len(weights_N) // SAMPLE
    sample = np.sort(weights_N[::stride])
    tails: NDArray[np.float64] = np.cumsum(sample) * float(stride)
    return sample, tails


def _first_to_reach(weights_N: NDArray[np.float64], before: float, target: float) -> NDArray[np.bool_]:
    """Which of the weights, largest and then first ones first, are needed for `before` and them to reach the target."""
    ordered = np.sort(weights_N)[::-1]
    count = min(int(np.searchsorted(before + np.cumsum(ordered), target)) + 1, len(ordered))
    return _largest(weights_N, ordered, count)


def _largest(weights_N: NDArray[np.float64], ordered: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    edge = ordered[count - 1]
    kept_N = weights_N > edge
    kept_N[np.flatnonzero(weights_N == edge)[: count - int(np.count_nonzero(kept_N))]] = True
    return kept_N


def _sparse_nucleus(logits_V: NDArray[np.float32], peak: np.float32, filters: Filters) -> Distribution | None:
    """The nucleus from candidates that float32 finds; None where they are many, or where it is too close to call.

    Tokens can be left aside when all of them together have less than `1 - top_p`, by a margin, and none of them is as
    likely as a token that is kept.
    """
    least, most = FLOAT32_TEMPERATURES
    if len(logits_V) <= SMALL or not least <= filters.temperature <= most:
        return None
    weights_V, total = weigh(logits_V, peak, np.float32(1 / filters.temperature))
    discarded = (1 - filters.top_p) * total
    edge, ids_N, rest = _candidates(logits_V, weights_V, peak, filters.temperature, discarded)
    if ids_N is None:
        return None
    exact_N = weigh_exactly(logits_V[ids_N], peak, filters.temperature)
    kept_N = _first_to_reach_with_rest(exact_N, rest, filters.top_p)
    most_left_aside = math.exp((edge - float(peak)) / filters.temperature) * (1 + 1e-12)
    if kept_N is None or rest >= discarded * (1 - MARGIN) or exact_N[kept_N].min() <= most_left_aside:
        return None
    return Distribution(ids_N[kept_N], exact_N[kept_N])


def _candidates(
    logits_V: NDArray[np.float32],
    weights_V: NDArray[np.float32],
    peak: np.float32,
    temperature: float,
    discarded: float,
) -> tuple[float, NDArray[np.intp] | None, float]:
    """A logit below which all tokens have less than the discarded weight, the other tokens, and the weight of those
    below; None for the tokens: too many.
    """
    # A vocabulary of tokens that have each less than an equal share of that weight has less than all of it.
    share = (1 - MARGIN) * discarded / len(logits_V)
    edge = np.float32(float(peak) + temperature * math.log(share))
    ids_N, rest = select(logits_V, weights_V, edge, FEW)
    if ids_N is None:
        edge = _sampled_edge(logits_V, peak, temperature, discarded)
        ids_N, rest = select(logits_V, weights_V, edge, len(logits_V) // SPARSE)
    return float(edge), ids_N, rest


def _sampled_edge(logits_V: NDArray[np.float32], peak: np.float32, temperature: float, discarded: float) -> np.float32:
    """A higher such logit, which a sample makes likely, as a nucleus may be of many tokens that are few of all."""
    stride = len(logits_V) // SAMPLE
    sample = np.sort(logits_V[::stride])
    tails = np.cumsum(np.exp(_shifted(sample, peak, temperature))) * stride
    return sample[min(int(np.searchsorted(tails, 0.75 * discarded)), len(sample) - 1)]


def _first_to_reach_with_rest(weights_N: NDArray[np.float64], rest: float, top_p: float) -> NDArray[np.bool_] | None:
    """As `_first_to_reach` for `top_p` of all weight; None where knowing the `rest` in float32 is too coarse."""
    ordered = np.sort(weights_N)[::-1]
    cumulative = np.cumsum(ordered)
    totals = [float(cumulative[-1]) + rest * (1 + error) for error in (-FLOAT32_ERROR, FLOAT32_ERROR)]
    least, most = np.searchsorted(cumulative, [top_p * total for total in totals])
    return _largest(weights_N, ordered, int(least) + 1) if least == most < len(ordered) else None
