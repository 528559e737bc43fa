"""The process that holds one variant of a model, and measures it when asked.

Legend: B sequences decoded together; W windows of text, S tokens each.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..artifacts import LanguageModelFacts
from ..runtime.choices import TokenQuestion, choice_accuracy
from ..runtime.onnxruntime import OnnxRunner
from ..runtime.perplexity import perplexity
from ..runtime.portable import PortableRunner
from ..runtime.runner import BLOCK_TOKENS
from ..runtime.scoring import log_probs
from ..runtime.varlen import VarlenRunner
from .timing import warm_up
from .variants import Variant

Measure = tuple[str, int]
"""What is asked: ("prefill", tokens) or ("decode", B) for seconds, ("resident", 0) for bytes, ("ready", 0) for 0."""
READY: Measure = ("ready", 0)
RESIDENT: Measure = ("resident", 0)
_SECONDS_A_TURN = 0.25
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Text:
    """Asks for the perplexity of windows [W, S] of token ids, the first token of each given."""

    windows_WS: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Questions:
    """Asks for the share of questions that are answered rightly."""

    questions: Sequence[TokenQuestion]


Asked = Text | Questions
"""What the quality of a variant is measured by."""


def open_worker(
    variant: Variant, path: Path, facts: LanguageModelFacts, slots: int, context: int, threads: int
) -> Callable[[Measure | Asked], float]:
    """Load a variant's graph, with `slots` sequences of `context` tokens; returns what answers a measure, a text
    or questions.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """
    runner = _runner(variant, path, facts, slots, threads)
    _fill(runner, context)
    return lambda asked: _answer(runner, asked, context, threads)


def _runner(variant: Variant, path: Path, facts: LanguageModelFacts, slots: int, threads: int) -> OnnxRunner:
    if variant.sparse:
        return VarlenRunner(path, facts, slots, threads, variant.kv)
    return PortableRunner(path, facts, slots, threads)


def _fill(runner: OnnxRunner, context: int) -> None:
    """Write to every page of every sequence's cache: memory that was never written costs less to read.

    A token for each page is enough. To read whole prompts instead would take a slow machine a minute.
    """
    step = min(BLOCK_TOKENS, max(1, _PAGE_BYTES // (np.dtype(np.float32).itemsize * runner.facts.head_dim)))
    for past in range(0, context, step):
        runner.decode(0, [1] * runner.slots, [past] * runner.slots)


def _answer(runner: OnnxRunner, asked: Measure | Asked, context: int, threads: int) -> float:
    scorer = partial(log_probs, runner)
    if isinstance(asked, Text):
        return perplexity(asked.windows_WS, scorer).value
    if isinstance(asked, Questions):
        return choice_accuracy(asked.questions, scorer).accuracy
    return _measure(runner, asked, context, threads)


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
