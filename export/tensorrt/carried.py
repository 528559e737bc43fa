"""Whether an engine file carries a weight byte for byte.

Legend: N out_features, K in_features of a linear layer.

A builder may lay several matrices of K rows side by side as one ([K, N1 + N2]), so a matrix is looked for row by row at
a constant distance. What is not found may still be there in another order: a miss proves nothing, a hit is exact.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_FUSED_AT_MOST = 8
"""How many times its own length a row may be away from the next one."""


def carried_layers(engine: bytes, weights: Mapping[str, NDArray]) -> list[str]:
    """Names of the layers whose weight [N, K], in the precision of the engine, lies in the engine's bytes.

    Either order of the dimensions counts, [K, N] or [N, K].
    """
    return [
        name
        for name, weight_NK in weights.items()
        if _contains_matrix(engine, weight_NK.T) or _contains_matrix(engine, weight_NK)
    ]


def _contains_matrix(engine: bytes, matrix: NDArray) -> bool:
    """Whether all rows of a matrix lie in `engine` at one constant distance."""
    rows = [np.ascontiguousarray(row).tobytes() for row in matrix]
    first, second = _anchor_rows(matrix)
    start = engine.find(rows[first])
    while start >= 0:
        end = start + (second - first) * _FUSED_AT_MOST * len(rows[first])
        other = engine.find(rows[second], start + len(rows[first]), end + len(rows[first]))
        if second == first or (other >= 0 and _has_rows(engine, rows, first, start, other - start, second - first)):
            return True
        start = engine.find(rows[first], start + 1)
    return False


def _anchor_rows(matrix: NDArray) -> tuple[int, int]:
    """Two rows that are hardly found by chance: the fullest, and the fullest after it (itself where it is the last)."""
    filled = np.count_nonzero(matrix, axis=1)
    first = int(filled[: max(1, len(filled) // 2)].argmax())
    rest = filled[first + 1 :]
    return first, first + 1 + int(rest.argmax()) if len(rest) else first


def _has_rows(engine: bytes, rows: list[bytes], anchor: int, start: int, distance: int, steps: int) -> bool:
    stride, remainder = divmod(distance, steps)
    origin = start - anchor * stride
    return (
        remainder == 0
        and origin >= 0
        and all(engine.startswith(row, origin + place * stride) for place, row in enumerate(rows))
    )
