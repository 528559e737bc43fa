"""Bytes of layers with coded exponents, over those of a bitmask: `python -m hebbline.benchmarks.coded_size`.

Weights are normally distributed. Links are random ones, as in a layer that is trained sparse, or those of the largest
weights, as after pruning. Nothing is timed: the figures are the same on every machine.

Legend: N out_features, K in_features.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from ..export.layouts import CODED, LAYOUTS

SHAPE_NK = (2048, 2048)
DENSITIES = (0.1, 0.3, 0.5)


def ratio(weight_NK: NDArray[np.float32], mask_NK: NDArray[np.bool_], values: str) -> float:
    """Bytes of the coded layer over those of its bitmask, with values of a name of VALUE_TYPES."""
    coded = next(layout for layout in CODED.values() if layout.values.name == values)
    bitmask = LAYOUTS[coded.name.replace("coded", "bitmask")]
    (rows, columns), links = weight_NK.shape, int(np.count_nonzero(mask_NK))
    size = coded.packed_bytes(rows, columns, links, weight_NK[mask_NK])
    return size / bitmask.packed_bytes(rows, columns, links)


def table() -> list[str]:
    """The lines of a table in Markdown."""
    rng = np.random.default_rng(0)
    weight_NK = rng.standard_normal(SHAPE_NK, dtype=np.float32)
    lines = ["| density | links | float32 | bfloat16 |", "|---|---|---|---|"]
    for density in DENSITIES:
        largest_NK = np.abs(weight_NK) >= np.quantile(np.abs(weight_NK), 1 - density)
        random_NK = rng.random(SHAPE_NK) < density
        for links, mask_NK in (("random", random_NK), ("the largest weights", largest_NK)):
            ratios = (ratio(weight_NK, mask_NK, values) for values in ("float32", "bfloat16"))
            lines.append(f"| {density} | {links} | " + " | ".join(f"{each:.3f}" for each in ratios) + " |")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
