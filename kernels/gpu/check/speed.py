"""Single layers timed on a GPU: every form, and torch's 2:4 tensors, against dense cuBLAS.

Legend: T tokens, N out_features, K in_features.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..packing import FORMS
from .cases import DENSITIES, VALUE_TYPES, first_line, pack, random_weight, timed_mask
from .timing import GraphReplay, Timing, compare, copies_beyond_cache

TWO_FOUR = "2:4 by torch"
TWO_FOUR_DENSITY = 0.5
TOKENS = (1, 2, 4, 8, 16, 32, 64)
SQUARE = (4096, 4096)
SHAPES = (
    SQUARE,
    (2048, 5461),
    (5461, 2048),
    (2048, 2048),
    (2048, 768),
    (768, 2048),
    (768, 768),
    (1376, 512),
    (512, 1376),
    (512, 512),
)
"""[N, K] of the projections of LLaMA-1B, 130M and 60M, and a square one like those of models of 7 billion, the most
telling first."""
_MOST_COPIES = 256


@dataclass(frozen=True)
class LayerTime:
    """One layer timed: what ran it, its sizes, density and tokens, against which baseline, and the times."""

    what: str
    baseline: str
    out_features: int
    in_features: int
    density: float
    tokens: int
    timing: Timing


@dataclass(frozen=True)
class NotTimed:
    """Layers that were not timed, and why."""

    what: str
    why: str


class Clock:
    """The seconds that are left of a budget."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self._end


@dataclass(frozen=True)
class Sweep:
    """What is timed, and where: shapes [N, K], densities, numbers of tokens, the value type, torch's 2:4 tensors or
    not, and the device."""

    shapes: Sequence[tuple[int, int]] = SHAPES
    densities: Sequence[float] = DENSITIES
    tokens: Sequence[int] = TOKENS
    values: str = "float16"
    two_four: bool = True
    device: str = "cuda"


def time_kernels(sweep: Sweep, clock: Clock) -> Iterator[LayerTime | NotTimed]:
    """Every form at every shape, density and number of tokens, against torch's dense product, until time is over."""
    for place, shape in enumerate(sweep.shapes):
        if clock.is_over:
            left = ", ".join(f"{rows}x{columns}" for rows, columns in sweep.shapes[place:])
            yield NotTimed(f"layers of {left}", "the time was over")
            return
        yield from _time_shape(shape, sweep, clock)


def _time_shape(shape: tuple[int, int], sweep: Sweep, clock: Clock) -> Iterator[LayerTime | NotTimed]:
    kind = VALUE_TYPES[sweep.values]
    inputs = {tokens: torch.randn(tokens, shape[1], dtype=kind, device=sweep.device) for tokens in sweep.tokens}
    baselines = _dense_replays(shape, inputs, sweep)
    candidates: list[tuple[str, float]] = [(form, density) for density in sweep.densities for form in FORMS]
    if sweep.two_four:
        candidates.insert(0, (TWO_FOUR, TWO_FOUR_DENSITY))
    for place, (what, density) in enumerate(candidates):
        if clock.is_over:
            left = ", ".join(f"{name} at {share:g}" for name, share in candidates[place:])
            yield NotTimed(f"{shape[0]}x{shape[1]}: {left}", "the time was over")
            return
        try:
            yield from _time_candidate(what, density, shape, inputs, baselines, sweep)
        except Exception as error:  # of torch, Triton or the driver, which share no base; the others go on
            yield NotTimed(f"{what} at {density:g} on {shape[0]}x{shape[1]}", first_line(error))


def _dense_replays(shape: tuple[int, int], inputs: dict[int, Tensor], sweep: Sweep) -> dict[int, GraphReplay]:
    weight_NK = torch.randn(shape, dtype=VALUE_TYPES[sweep.values], device=sweep.device)
    copies = _copies(weight_NK.nbytes, [weight_NK])
    return {
        tokens: GraphReplay([_bound(torch.nn.functional.linear, x_TK, *weight) for weight in copies])
        for tokens, x_TK in inputs.items()
    }


def _time_candidate(
    what: str,
    density: float,
    shape: tuple[int, int],
    inputs: dict[int, Tensor],
    baselines: dict[int, GraphReplay],
    sweep: Sweep,
) -> Iterator[LayerTime]:
    mask_NK = timed_mask("nm24" if what == TWO_FOUR else what, density, shape)
    weight_NK = random_weight(np.random.default_rng(0), mask_NK, sweep.values)
    if what == TWO_FOUR:
        dense = torch.from_numpy(weight_NK).to(sweep.device, VALUE_TYPES[sweep.values])
        halves = [torch.sparse.to_sparse_semi_structured(dense) for _ in range(_count(dense.nbytes * 9 // 16))]
        launches = {
            x: [_bound(torch.nn.functional.linear, x_TK, half) for half in halves] for x, x_TK in inputs.items()
        }
    else:
        packed = pack(what, weight_NK, mask_NK)
        copies = _copies(packed.bytes, ops.to_torch(packed, sweep.device, VALUE_TYPES[sweep.values]))
        launches = {x: [_bound(ops.linear, x_TK, packed, tensors) for tensors in copies] for x, x_TK in inputs.items()}
    for tokens, bound in launches.items():
        timing = compare(baselines[tokens], GraphReplay(bound))
        yield LayerTime(what, "cuBLAS", *shape, float(mask_NK.mean()), tokens, timing)


def _count(weight_bytes: int) -> int:
    return min(_MOST_COPIES, copies_beyond_cache(weight_bytes))


def _copies(weight_bytes: int, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """So many copies of a weight that they exceed the GPU's cache, or 256."""
    return [tuple(tensor.clone() for tensor in tensors) for _ in range(_count(weight_bytes))]


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
