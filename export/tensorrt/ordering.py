"""Orders of a layer's own inputs that make it 2:4 where the orders of `permute` do not.

Legend: N out_features, K in_features of a linear layer.

`permute` has one order of the residual stream for all layers that read it, and the more rows an order serves the less
it can do for each. In a graph a layer may gather its inputs in an order of its own: X[order] times W[:, order] is X
times W, exactly. Sparse tactics take a layer that is 2:4 as a whole or not at all; so a gather, which reads and writes
the inputs once, is only worth having where it makes all of a layer 2:4. On random masks of 768 x 768 it does so at 10%
density (`python -m hebbline.benchmarks.permutation`).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..layouts.nm24 import GROUP, is_two_of_four
from ..passes.grouping import TWO_OF_FOUR, swap_search

MOST_DENSITY = 0.15
"""Above this no layer of usual sizes becomes 2:4, and the search takes seconds to find that out."""

Orders = Mapping[str, NDArray[np.int64]]


def input_orders(masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.int64]]:
    """An order [K] of the inputs of each layer that is not 2:4 and becomes so by one that the search finds."""
    found = {name: _order(mask_NK) for name, mask_NK in masks.items()}
    return {name: order_K for name, order_K in found.items() if order_K is not None}


def in_order(matrix_NK: NDArray, order_K: NDArray[np.int64] | None) -> NDArray:
    """The columns of a weight or mask in the order; as it is without one."""
    return matrix_NK if order_K is None else np.take(matrix_NK, order_K, axis=1)


def _order(mask_NK: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    is_hopeless = mask_NK.mean() > MOST_DENSITY or mask_NK.shape[1] % GROUP != 0
    if is_hopeless or is_two_of_four(mask_NK):
        return None
    order_K = swap_search(np.ascontiguousarray(mask_NK.T), TWO_OF_FOUR, seed=0)
    return order_K if is_two_of_four(in_order(mask_NK, order_K)) else None
