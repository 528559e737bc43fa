"""The process that holds one variant of a model, and measures it when asked.

Legend: B sequences decoded together.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..artifacts import LanguageModelFacts
from ..serve.engine.onnxruntime import PLACES, OnnxRunner
from ..serve.engine.portable import PortableRunner
from ..serve.engine.varlen import VarlenRunner
from .timing import warm_up
from .variants import Variant

Measure = tuple[str, int]
"""What is asked: ("prefill", tokens) or ("decode", B) for seconds, ("resident", 0) for bytes, ("ready", 0) for 0."""
READY: Measure = ("ready", 0)
RESIDENT: Measure = ("resident", 0)
_SECONDS_A_TURN = 0.25
_PAGE_BYTES = 4096


def open_worker(
    variant: Variant, path: Path, facts: LanguageModelFacts, slots: int, context: int, threads: int
) -> Callable[[Measure], float]:
    """Load a variant's graph, with `slots` sequences of `context` tokens; returns what answers a measure.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """
    runner = _runner(variant, path, facts, slots, threads)
    _fill(runner, context)
    return lambda measure: _measure(runner, measure, context, threads)


def _runner(variant: Variant, path: Path, facts: LanguageModelFacts, slots: int, threads: int) -> OnnxRunner:
    if variant.sparse:
        return VarlenRunner(path, facts, slots, threads, variant.kv)
    return PortableRunner(path, facts, slots, threads)


def _fill(runner: OnnxRunner, context: int) -> None:
    """Write to every page of every sequence's cache: memory that was never written costs less to read.

    A token for each page is enough. To read whole prompts instead would take a slow machine a minute.
    """
    step = min(PLACES, max(1, _PAGE_BYTES // (np.dtype(np.float32).itemsize * runner.facts.head_dim)))
    for past in range(0, context, step):
        runner.decode(0, [1] * runner.slots, [past] * runner.slots)


def _measure(runner: OnnxRunner, measure: Measure, context: int, threads: int) -> float:
    if measure == READY:
        return 0.0
    if measure == RESIDENT:
        return float(_resident_bytes())
    kind, size = measure
    if kind == "prefill":
        ids = np.random.default_rng(1).integers(0, runner.vocab_size, size).tolist()
        return _seconds(lambda: runner.prefill(0, ids, 0, [size - 1]), threads)
    past = [context] * size
    return _seconds(lambda: runner.decode(0, [1] * size, past), threads)


def _seconds(call: Callable[[], object], threads: int) -> float:
    """Mean seconds of the calls that fill a turn, after `warm_up`."""
    warm_up(call, threads)
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < _SECONDS_A_TURN:
        call()
        calls += 1
    return (time.perf_counter() - started) / calls


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
