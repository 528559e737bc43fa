"""How much of a random mask `permute` makes 2:4, and in what time: `python -m hebbline.benchmarks.permutation`.

Runs on one core. Prints a line for each density of a 768 x 2048 layer: the share of links that fit before and after.
"""

import os
import time

import numpy as np

from ..export.layouts.nm24 import fitting_links
from ..export.passes.grouping import TWO_OF_FOUR, swap_search

SHAPE = (768, 2048)
DENSITIES = (0.3, 0.1)
SEED = 0


def main() -> None:
    """Run and print."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{SHAPE[0]} x {SHAPE[1]}, uniform at random, one core")
    for density in DENSITIES:
        mask_NK = np.random.default_rng(SEED).random(SHAPE) < density
        started = time.perf_counter()
        order_K = swap_search(mask_NK.T, TWO_OF_FOUR, seed=SEED)
        seconds = time.perf_counter() - started
        before, after = (fitting_links(mask_NK[:, order]) / mask_NK.sum() for order in (np.arange(SHAPE[1]), order_K))
        print(f"density {density:.0%}: {before:.2%} of links fit 2:4 before, {after:.2%} after, in {seconds:.1f} s")


if __name__ == "__main__":
    main()
