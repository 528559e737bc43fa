"""Tokens that may be drawn, and how a number of [0, 1) draws one of them, in the order of token ids.

Legend: V vocabulary, B blocks of `BLOCK` tokens of it, N tokens that may be drawn, M of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.sampling import BLOCK, weigh


@dataclass(frozen=True)
class FewTokens:
    """Tokens with weights that are in proportion to their probabilities.

    Attributes:
        ids_N: token ids in ascending order.
        weights_N: at least 0, in float64, not all 0.
    """

    ids_N: NDArray[np.intp]
    weights_N: NDArray[np.float64]

    def draw(self, uniform: float) -> int:
        """The token at `uniform` of the cumulative distribution."""
        cumulative_N = np.cumsum(self.weights_N)
        return int(self.ids_N[_crossing(self.weights_N, cumulative_N, uniform * float(cumulative_N[-1]))])

    def probabilities(self, vocab_size: int) -> NDArray[np.float64]:
        """That of every token [V]."""
        result_V = np.zeros(vocab_size)
        result_V[self.ids_N] = self.weights_N / self.weights_N.sum()
        return result_V


@dataclass(frozen=True)
class ManyTokens:
    """Tokens of which only sums are known; weights are made where they are asked for.

    Attributes:
        logits_V: of the vocabulary.
        peak: the largest of them.
        temperature: a token has the weight e^((logit - peak) / temperature).
        sums_B: of each block, the sum of the weights of those that may be drawn, but for rounding.
        above: all whose logits are larger may be drawn.
        ids_M: others that may, in ascending order.
    """

    logits_V: NDArray[np.float32]
    peak: np.float32
    temperature: float
    sums_B: NDArray[np.float64]
    above: float
    ids_M: NDArray[np.intp]

    def draw(self, uniform: float) -> int:
        """The token at `uniform` of the cumulative distribution."""
        cumulative_B = np.cumsum(self.sums_B)
        target = uniform * float(cumulative_B[-1])
        for block in self._nearest(_crossing(self.sums_B, cumulative_B, target)):
            before = float(cumulative_B[block - 1]) if block else 0.0
            weights = self._weights(block * BLOCK, (block + 1) * BLOCK)
            cumulative = np.cumsum(weights)
            if cumulative[-1] > 0:
                return block * BLOCK + _crossing(weights, cumulative, max(target - before, 0.0))
        raise ValueError("no token may be drawn")

    def probabilities(self, vocab_size: int) -> NDArray[np.float64]:
        """That of every token [V]."""
        weights_V = self._weights(0, vocab_size)
        return weights_V / weights_V.sum()

    def _nearest(self, block: int) -> Iterator[int]:
        """A block, and then the others: what rounding leaves of a sum may be all that a block seems to have."""
        yield block
        yield from range(block - 1, -1, -1)
        yield from range(block + 1, len(self.sums_B))

    def _weights(self, first: int, last: int) -> NDArray[np.float64]:
        logits = self.logits_V[first:last]
        weights = weigh(logits, self.peak, self.temperature)
        kept = logits > self.above
        begin, end = np.searchsorted(self.ids_M, (first, last))
        kept[self.ids_M[begin:end] - first] = True
        weights *= kept
        return weights


Distribution = FewTokens | ManyTokens


def _crossing(weights: NDArray, cumulative: NDArray, target: float) -> int:
    """The first index at which the cumulative weight exceeds the target; where rounding leaves none, the last one's."""
    index = int(np.searchsorted(cumulative, target, side="right"))
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])
