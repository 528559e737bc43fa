"""What drawing a token costs: `python -m hebbline.benchmarks.sampling`.

Each way to filter, on rows of logits of several shapes, beside sorting the whole vocabulary in float64 in the same run.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..serve.parameters import SamplingParameters
from ..serve.sampling import Sampler

VOCABULARIES = (49_152, 128_256)
REPEATS = 101
TEMPERATURE = 0.8
FILTERS: dict[str, dict[str, float]] = {
    "temperature alone": {},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 50": {"top_k": 50},
    "top-k 50, top-p 0.95": {"top_k": 50, "top_p": 0.95},
    "min-p 0.05": {"min_p": 0.05},
    "min-p 0.05, top-p 0.9": {"min_p": 0.05, "top_p": 0.9},
}


def main() -> None:
    """Print median microseconds a row."""
    for vocabulary in VOCABULARIES:
        rows = _rows(vocabulary)
        print(f"\nvocabulary {vocabulary:,}, temperature {TEMPERATURE}; median microseconds a row")
        print(f"{'':24}" + "".join(f"{kind:>12}" for kind in rows))
        for name, filters in FILTERS.items():
            sampler = Sampler(SamplingParameters(temperature=TEMPERATURE, seed=0, **filters))  # type: ignore[arg-type]
            print(f"{name:24}" + "".join(f"{_median(sampler.sample, row):12.0f}" for row in rows.values()))
        print(
            f"{'top-p 0.9 by sorting':24}" + "".join(f"{_median(_by_sorting, row, 15):12.0f}" for row in rows.values())
        )


def _rows(vocabulary: int) -> dict[str, NDArray[np.float32]]:
    """Logits [V]: a nucleus of most of the vocabulary, of a part of it, and of a few tokens, as a trained model has."""
    generator = np.random.default_rng(0)
    normal_V = generator.standard_normal(vocabulary)
    peaked_V = 3 * normal_V
    peaked_V[generator.integers(0, vocabulary, 200)] += 12
    rows = {"flat": normal_V, "spread": 3 * normal_V, "peaked": peaked_V}
    return {kind: row_V.astype(np.float32) for kind, row_V in rows.items()}


def _by_sorting(logits_V: NDArray[np.float32]) -> int:
    """One token of the nucleus of 0.9, the plain way."""
    weights_V = np.exp((logits_V.astype(np.float64) - logits_V.max()) / TEMPERATURE)
    order_V = np.argsort(-weights_V, kind="stable")
    cumulative_V = np.cumsum(weights_V[order_V])
    weights_V[order_V[np.searchsorted(cumulative_V, 0.9 * cumulative_V[-1]) + 1 :]] = 0
    return int(np.searchsorted(np.cumsum(weights_V), 0.5 * weights_V.sum(), side="right"))


def _median(draw: Callable[[NDArray[np.float32]], int], row_V: NDArray[np.float32], repeats: int = REPEATS) -> float:
    draw(row_V)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        draw(row_V)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


if __name__ == "__main__":
    main()
