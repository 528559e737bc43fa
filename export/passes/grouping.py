"""Putting items into groups of a fixed size so that what a group costs is least.

Legend: K items, R places that an item may be linked to, W items in a group, Q = K // W whole groups.

The cost of a group is the sum over places of f(c), c the number of its items that are linked there. Both structures of
`permute` are of this kind: 2:4 (W = 4; f counts the links beyond two) and blocks (f is 1 where there is any link).

Method: in each round one item of every group is lifted out, at random. What each lifted item would cost in each of the
groups, over what is left there, is one matrix product [Q, R] x [R, Q]; from it follows exactly what every swap of two
lifted items gains. Swaps of disjoint pairs of groups do not touch each other, so all that a greedy matching finds are
made at once. The cost falls with every round; the search ends when rounds in a row find no swap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_IDLE_ROUNDS = 60
"""Rounds without a swap that end a search. A given pair of items of two groups of four is lifted in one of 16."""
_MOST_ROUNDS = 1000
_LARGEST_SEARCH = 1 << 28
"""Links of more than so many items times places are sampled: evenly spaced places stand for all."""
_LARGEST_CLUSTERING = 1 << 36


@dataclass(frozen=True)
class GroupCost:
    """Groups of `width` items; `marginal[c]` is what one more link costs at a place where the group has c."""

    width: int
    marginal: tuple[float, ...]

    def total(self, links_KR: NDArray[np.bool_], order_K: NDArray[np.int64]) -> int:
        """The cost of all whole groups when the items stand in this order."""
        groups = len(order_K) // self.width
        items_KR = links_KR[order_K[: groups * self.width]]
        counts = items_KR.reshape(groups, self.width, links_KR.shape[1]).sum(axis=1, dtype=np.int64)
        return int(np.concatenate([[0], np.cumsum(self.marginal)])[counts].sum())


TWO_OF_FOUR = GroupCost(4, (0, 0, 1, 1))


def block_cost(size: int) -> GroupCost:
    """A group costs one for each place at which it has any link."""
    return GroupCost(size, (1,) + (0,) * (size - 1))


def swap_search(
    links_KR: NDArray[np.bool_], cost: GroupCost, *, seed: int, start_K: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """An order of the items whose whole groups cost no more than they do in `start_K` (by default, as they come).

    Items beyond the last whole group stay. Deterministic for a seed. Within a group, and among groups, items ascend.
    """
    items, width = len(links_KR), cost.width
    order_K = np.arange(items) if start_K is None else start_K.astype(np.int64)
    groups = items // width
    if groups < 2 or not links_KR.size:
        return order_K
    search = _Search(_sampled(links_KR, _LARGEST_SEARCH // items), cost, order_K[: groups * width])
    random, idle = np.random.default_rng(seed), 0
    for _ in range(_MOST_ROUNDS):
        idle = 0 if search.round(random.integers(0, width, groups)) else idle + 1
        if idle == _IDLE_ROUNDS or search.perfect:
            break
    groups_QW = np.sort(search.order_QW, axis=1)
    found_K = np.concatenate([groups_QW[np.argsort(groups_QW[:, 0])].reshape(-1), order_K[groups * width :]])
    # A search over a sample of the places may be wrong about all of them.
    return found_K if cost.total(links_KR, found_K) < cost.total(links_KR, order_K) else order_K


def cluster(links_KR: NDArray[np.bool_], width: int) -> NDArray[np.int64]:
    """An order that puts items with similar links together: each group grows from the first item that is left by the
    ones most similar to it (cosine with the group's sum). A start for `swap_search`, which cannot find a cluster that
    no single swap approaches."""
    items = len(links_KR)
    unit_KR = _sampled(links_KR, max(1, _LARGEST_CLUSTERING // max(1, items**2))).astype(np.float32)
    unit_KR /= np.sqrt(np.maximum(1, unit_KR.sum(axis=1, keepdims=True)))
    taken_K, order = np.zeros(items, bool), []
    for place in range(items):
        if place % width == 0:
            chosen = int(np.argmin(taken_K))
            sum_R = unit_KR[chosen].copy()
        else:
            chosen = int(np.argmax(np.where(taken_K, -np.inf, unit_KR @ sum_R)))
            sum_R += unit_KR[chosen]
        taken_K[chosen] = True
        order.append(chosen)
    return np.array(order, np.int64)


class _Search:
    """The groups, and how many links each has at each place."""

    def __init__(self, links_KR: NDArray[np.bool_], cost: GroupCost, order: NDArray[np.int64]) -> None:
        self.order_QW = order.reshape(-1, cost.width).copy()
        self._links_KR = links_KR.astype(np.float32)
        self._marginal = np.array(cost.marginal, np.float32)
        self._total = np.concatenate([[0], np.cumsum(cost.marginal)])
        self._counts_QR = np.stack([links_KR[group].sum(axis=0, dtype=np.int16) for group in self.order_QW])

    @property
    def perfect(self) -> bool:
        """Whether nothing is left to gain."""
        return not self._total[self._counts_QR].any()

    def round(self, lifted_Q: NDArray[np.int64]) -> int:
        """Swap lifted items (by their place in the group) between pairs of groups; returns the number of swaps."""
        every = np.arange(len(lifted_Q))
        items_Q = self.order_QW[every, lifted_Q]
        links_QR = self._links_KR[items_Q]
        rest_QR = self._counts_QR - links_QR.astype(np.int16)
        # Row: group; column: lifted item. Counts are exact in float32.
        inserted_QQ = self._marginal[rest_QR] @ links_QR.T
        now_Q = inserted_QQ.diagonal()
        gain_QQ = now_Q[:, None] + now_Q - inserted_QQ - inserted_QQ.T
        first, second = disjoint_pairs(gain_QQ)
        for group, other in ((first, second), (second, first)):
            self.order_QW[group, lifted_Q[group]] = items_Q[other]
            self._counts_QR[group] = rest_QR[group] + links_QR[other].astype(np.int16)
        return len(first)


def disjoint_pairs(gain_QQ: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A greedy matching: the pairs of greatest positive gain of which no two share a member. `gain_QQ` is symmetric."""
    first, second = np.nonzero(np.triu(gain_QQ > 0, 1))
    by_gain = np.argsort(-gain_QQ[first, second], kind="stable")
    first, second = first[by_gain], second[by_gain]
    chosen: list[NDArray[np.int64]] = []
    while len(first):
        # A pair that is the best of both its members is in the matching; take all those, drop what they touch.
        rank, best_Q = np.arange(len(first)), np.full(len(gain_QQ), len(first))
        np.minimum.at(best_Q, np.concatenate([first, second]), np.concatenate([rank, rank]))
        dominant = (best_Q[first] == rank) & (best_Q[second] == rank)
        chosen.append(np.stack([first[dominant], second[dominant]]))
        touched_Q = np.zeros(len(gain_QQ), bool)
        touched_Q[chosen[-1].reshape(-1)] = True
        left = ~(touched_Q[first] | touched_Q[second])
        first, second = first[left], second[left]
    pairs = np.concatenate([np.zeros((2, 0), np.int64), *chosen], axis=1)
    return pairs[0], pairs[1]


def _sampled(links_KR: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    step = -(-links_KR.shape[1] // max(1, most))
    return links_KR[:, :: max(1, step)]
