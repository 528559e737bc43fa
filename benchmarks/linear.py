"""One linear layer: every value type, and what else computes such layers, against dense float32 ONNX Runtime.

Legend: N out_features, K in_features, M tokens.

Rows come as they are measured. At most the dense layers and one candidate are in memory at a time.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.cost import Work
from ..kernels.isa import kernels_isa
from .budget import NO_BUDGET, Budget
from .cases import Cell, LinearCases, plan_cells
from .layers import Call, DenseLayers, SparseLayers
from .machine import read_bandwidth
from .outlook import Outlook, outlook
from .peers import PeerRow, build_peer
from .timing import interleaved

_BANDWIDTH_ROUNDS = 3


@dataclass(frozen=True)
class LinearRow:
    """One measurement: median microseconds a layer, the dense float32 ones of the same rounds, and their ratio.

    `isa` is the instruction set of the kernels; `outlook` says what the cost model says of a layer on one thread.
    """

    out_features: int
    in_features: int
    density: float
    tokens: int
    threads: int
    isa: str
    values: str
    layout: str
    us: float
    dense_us: float
    ratio: float
    max_rel_err: float
    outlook: Outlook | None = None


def run_linear(
    cases: LinearCases, budget: Budget = NO_BUDGET, on_step: Callable[[str], None] = lambda step: None
) -> Generator[LinearRow | PeerRow, None, None]:
    """Measure the cells of `plan_cells(cases)` in their order; `on_step` is told what is built and timed.

    The first row is measured however small the budget is, and no other is begun when it is over.

    Raises:
        InputError: the op library cannot be loaded, or HEBBLINE_ISA names what there is not.
        CheckError: a result differs from float64 by more than its type's `layers.LARGEST_ERROR`.
    """
    isa = kernels_isa()
    bandwidth = read_bandwidth(threads=1, rounds=_BANDWIDTH_ROUNDS)
    dense: DenseLayers | None = None
    for number, cell in enumerate(plan_cells(cases)):
        if number and not budget.left():
            return
        if dense is None or dense.case != (cell.shape, cell.threads):
            dense = None  # its memory is free before the next is built
            on_step(f"building the dense layers, {_shape(cell)}, {_threads(cell)}")
            dense = DenseLayers(_weight(cell), cell.threads)
        on_step(f"{_shape(cell)}, {_threads(cell)}, density {cell.density:g}, {cell.what}")
        if cell.is_peer:
            yield from _peer_rows(cell, dense, isa, budget, is_first=not number)
        else:
            yield from _layer_rows(cell, dense, _Here(isa, bandwidth), budget, is_first=not number)


@dataclass(frozen=True)
class _Here:
    """This machine: the instruction set of its kernels, and the bytes a second that one core reads."""

    isa: str
    bandwidth: float


def _layer_rows(cell: Cell, dense: DenseLayers, here: _Here, budget: Budget, *, is_first: bool) -> Iterator[LinearRow]:
    mask_NK = _mask(cell)
    work = Work(*cell.shape, int(np.count_nonzero(mask_NK)), cell.what)
    layers = SparseLayers(_weight(cell) * mask_NK, mask_NK, cell.what, cell.threads)
    for x_MK in _inputs(cell, budget, is_first):
        error = layers.check(x_MK)
        us, dense_us = _microseconds(cell, layers.bind(x_MK), layers.copies, dense, x_MK, budget)
        case = (*cell.shape, cell.density, len(x_MK), cell.threads, here.isa)
        beside = outlook(work, len(x_MK), here.isa, us, dense_us, here.bandwidth) if cell.threads == 1 else None
        yield LinearRow(*case, cell.what, layers.layout.name, us, dense_us, dense_us / us, error, beside)


def _peer_rows(cell: Cell, dense: DenseLayers, isa: str, budget: Budget, *, is_first: bool) -> Iterator[PeerRow]:
    weight_NK = _weight(cell)
    if cell.density < 1:
        weight_NK *= _mask(cell)
    bind = build_peer(cell.what, weight_NK, cell.threads)
    for x_MK in _inputs(cell, budget, is_first):
        us, dense_us = _microseconds(cell, bind(x_MK), dense.copies, dense, x_MK, budget)
        yield PeerRow(*cell.shape, cell.density, len(x_MK), cell.threads, isa, cell.what, us, dense_us, dense_us / us)


def _inputs(cell: Cell, budget: Budget, is_first: bool) -> Iterator[NDArray[np.float32]]:
    """X [M, K] of each number of tokens, until the time is over."""
    for tokens in cell.tokens:
        if budget.left() or is_first:
            yield np.random.default_rng(2).standard_normal((tokens, cell.shape[1]), np.float32)
        is_first = False


def _microseconds(
    cell: Cell, call: Call, copies: int, dense: DenseLayers, x_MK: NDArray[np.float32], budget: Budget
) -> tuple[float, float]:
    """Of one layer, and of one dense layer in the same rounds."""
    candidates = {"dense": dense.bind(x_MK), "candidate": call}
    seconds = interleaved(candidates, threads=cell.threads, most_seconds=budget.left())
    return seconds["candidate"] / copies * 1e6, seconds["dense"] / dense.copies * 1e6


def _weight(cell: Cell) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(cell.shape, np.float32) / 32


def _mask(cell: Cell) -> NDArray[np.bool_]:
    return np.random.default_rng(1).random(cell.shape) < cell.density


def _shape(cell: Cell) -> str:
    return f"{cell.shape[0]}x{cell.shape[1]}"


def _threads(cell: Cell) -> str:
    return f"{cell.threads} thread{'s' if cell.threads > 1 else ''}"
