"""Timing forced packings beside dense float32 layers, call by call, in the time that the thread itself runs.

Each call of the candidate follows one of the dense layers, which together are larger than the last cache: weights come
from memory. Where they are to be found in a cache, there is one layer of each, and calls come one after another.

Legend: N out_features, K in_features, M tokens.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from statistics import median

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ...artifacts import CheckError
from ...export.layouts import DOMAIN, LAYOUTS, Layout
from ...export.layouts.layout import layout_name
from ...export.layouts.values import VALUE_TYPES
from ..budget import Budget
from ..layers import Layers, dense_model, linear_model
from .cells import CostCell
from .ledger import Ledger, Sample

_DENSE_BYTES = 64 << 20
_PACKED_BYTES = 8 << 20
_FEWEST, _MOST = 4, 64
_SECONDS = 0.3
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 100


def measure(
    ledger: Ledger, cells: Sequence[CostCell], budget: Budget, on_cell: Callable[[str], None] = lambda line: None
) -> int:
    """Measure the cells that the ledger lacks, as many as the budget allows; how many are left.

    Raises:
        InputError: there is no op library, or this processor lacks the instruction set.
    """
    known = {(sample.isa, sample.family, sample.layer) for sample in ledger.samples()}
    missing = [cell for cell in cells if not _is_known(cell, known)]
    try:
        for done, cell in enumerate(missing):
            if not budget.left():
                return len(missing) - done
            on_cell(f"{cell.family} {cell.values} {cell.shape[0]}x{cell.shape[1]} at {cell.density:g}")
            ledger.add(_measure_cell(cell))
        return 0
    finally:
        for kept in (_dense, _tensors, _weight):
            kept.cache_clear()


def _is_known(cell: CostCell, known: set) -> bool:
    layers = [(*cell.shape, cell.density, cell.values, cell.blocks, tokens, cached) for tokens, cached in cell.calls()]
    return all((cell.isa, cell.family, layer) in known for layer in layers)


def _measure_cell(cell: CostCell) -> list[Sample]:
    mask_NK = cell.mask()
    links = int(np.count_nonzero(mask_NK))
    samples = []
    for cached in (False, True):
        calls = [tokens for tokens, found in cell.calls() if found == cached]
        if not calls:
            continue
        dense, packed = _dense(cell.shape, 1 if cached else 0), _packed(cell, 1 if cached else 0)
        for tokens in calls:
            x_MK = np.random.default_rng(2).standard_normal((tokens, cell.shape[1])).astype(np.float32)
            us, dense_us = _in_turns(packed, dense, x_MK, cached)
            facts = (cell.isa, cell.family, cell.values, *cell.shape, cell.density, cell.blocks, links)
            samples.append(Sample(*facts, tokens, cached, round(us, 2), round(dense_us, 2)))
    return samples


def _in_turns(packed: Layers, dense: Layers, x_MK: NDArray[np.float32], cached: bool) -> tuple[float, float]:
    """Median microseconds of one packed and of one dense layer."""
    calls = [packed.bind(x_MK), dense.bind(x_MK)]
    seconds: list[list[float]] = [[], []]
    end = time.perf_counter() + _SECONDS
    while len(seconds[0]) <= _FEWEST_ROUNDS or (time.perf_counter() < end and len(seconds[0]) < _MOST_ROUNDS):
        for call, times in zip(calls, seconds, strict=True):
            if cached:
                call()
            started = time.thread_time_ns()
            call()
            times.append((time.thread_time_ns() - started) / 1e3)
    us, dense_us = (median(times[1:]) for times in seconds)
    if not us > 0 < dense_us:
        raise CheckError("the clock of the thread stands still: it cannot time a layer")
    return us / packed.copies, dense_us / dense.copies


@lru_cache(maxsize=2)
def _dense(shape: tuple[int, int], copies: int) -> Layers:
    """Dense layers; 0 copies: as many as no cache holds."""
    weight_NK = _weight(shape)
    count = copies or -(-_DENSE_BYTES // weight_NK.nbytes)
    return Layers(lambda copies: dense_model(weight_NK, copies), shape, 1, copies=count)


def _packed(cell: CostCell, copies: int) -> Layers:
    """Layers of the family; 0 copies: enough for their time to be told from that of the call."""
    layout = LAYOUTS[layout_name("bitmask", VALUE_TYPES[cell.values])]
    tensors = _tensors(cell.shape, cell.density, cell.blocks, layout.name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    count = copies or min(_MOST, max(_FEWEST, _PACKED_BYTES // max(1, size)))
    with _forced(HEBBLINE_ISA=cell.isa, HEBBLINE_FAMILY=cell.family):
        return Layers(lambda copies: _model(cell, layout, tensors, copies), cell.shape, 1, ["kernels"], count)


@lru_cache(maxsize=2)
def _tensors(shape: tuple[int, int], density: float, blocks: bool, name: str) -> dict[str, NDArray]:
    mask_NK = CostCell("", "", "", shape, density, blocks).mask()
    return LAYOUTS[name].encode(_weight(shape) * mask_NK, mask_NK)


@lru_cache(maxsize=1)
def _weight(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32) / 32


def _model(cell: CostCell, layout: Layout, tensors: dict[str, NDArray], copies: int) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(tensors[name], name) for name in layout.tensor_names]
    inputs = ["X", *layout.tensor_names, ""]
    nodes = [
        helper.make_node(layout.op_type, inputs, [f"Y{copy}"], domain=DOMAIN, in_features=cell.shape[1])
        for copy in range(copies)
    ]
    return linear_model(nodes, initializers, cell.shape, [layout.function()])


@contextmanager
def _forced(**variables: str) -> Iterator[None]:
    """Environment variables that the kernels read when a session is made."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
