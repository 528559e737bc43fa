"""Whether an engine file holds a weight byte for byte.

Legend: N out_features, K in_features of a linear layer.

A builder may lay several matrices of K rows side by side as one ([K, N1 + N2]), so a matrix is looked for row by row at
a constant distance. What is not found may still be there in another order: a miss proves nothing, a hit is exact.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_FUSED_AT_MOST = 512
"""How many times its own length a row may be away from the next one: a single head of keys, beside all that share its
input, is a small part of the row."""
_TRIES = 1000
"""Places at which a row may be found in vain before the matrix counts as not found."""


def unchanged_layers(engine: bytes, weights: Mapping[str, NDArray]) -> list[str]:
    """Names of the layers whose weight [N, K], in the precision of the engine, lies in the engine's bytes.

    Either order of the dimensions counts, [K, N] or [N, K].
    """
    return [
        name
        for name, weight_NK in weights.items()
        if _contains_matrix(engine, weight_NK.T) or _contains_matrix(engine, weight_NK)
    ]


def _contains_matrix(engine: bytes, matrix: NDArray) -> bool:
    """Whether all rows of a matrix, one of which is not zero, lie in `engine` at one constant distance."""
    rows = [np.ascontiguousarray(row).tobytes() for row in matrix]
    first, second = _anchor_rows(matrix)
    start = engine.find(rows[first]) if matrix.any() else -1
    for _ in range(_TRIES):
        if start < 0:
            return False
        end = start + (second - first) * _FUSED_AT_MOST * len(rows[first])
        other = engine.find(rows[second], start + len(rows[first]), end + len(rows[first]))
        if second == first or (other >= 0 and _has_rows(engine, rows, first, start, other - start, second - first)):
            return True
        start = engine.find(rows[first], start + 1)
    return False


def _anchor_rows(matrix: NDArray) -> tuple[int, int]:
    """The two fullest rows, in order, which are hardly found by chance; twice the only one where there is one."""
    fullest = np.argsort(-np.count_nonzero(matrix, axis=1), kind="stable")[:2]
    return int(fullest.min()), int(fullest.max())


def _has_rows(engine: bytes, rows: list[bytes], anchor: int, start: int, distance: int, steps: int) -> bool:
    stride, remainder = divmod(distance, steps)
    origin = start - anchor * stride
    return (
        remainder == 0
        and origin >= 0
        and all(engine.startswith(row, origin + place * stride) for place, row in enumerate(rows))
    )
