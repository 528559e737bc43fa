"""The faster of an artifact's two graphs on the machine at hand, by a short measurement.

`model.hebbline.onnx` multiplies by the links only, on the op library's kernels; `model.onnx` becomes a dense model in
ONNX Runtime. Which is faster depends on the densities, the shapes and the processor's instruction set, so it is
measured where it matters: when a server loads the artifact.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..artifacts import InputError, KvFormat, LanguageModelFacts, read_manifest
from ..kernels.isa import kernels_isa
from .cache_size import available_bytes, describe_cache
from .onnxruntime import KERNELS_MODEL_FILE, MODEL_FILE, OnnxRunner
from .opening import open_onnx
from .portable import PortableRunner
from .varlen import VarlenRunner

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 64
GENERATED_TOKENS = 8
ROUNDS = 3
SECONDS = 2.0
"""Rounds after the first are left out once so much time has gone by."""
MARGIN = 1.1
"""The portable graph is taken where it is so many times as fast: it takes more memory, and no mixed steps."""
PORTABLE_BYTES_A_CELL = 30
"""Memory while ONNX Runtime decodes the packed layers of `model.onnx`, over the possible links."""


@dataclass(frozen=True)
class GraphTimes:
    """Seconds that a runner takes to read a prompt of `PROMPT_TOKENS`, and to generate a token after it."""

    prompt: float
    token: float

    @property
    def total(self) -> float:
        """A prompt, and as many generated tokens."""
        return self.prompt + PROMPT_TOKENS * self.token


@dataclass(frozen=True)
class GraphChoice:
    """Which graph runs ("kernels" or "portable"), why, and what its cache is, in sentences for the operator."""

    graph: Literal["kernels", "portable"]
    reason: str
    cache: str = ""

    def __str__(self) -> str:
        file = KERNELS_MODEL_FILE if self.graph == "kernels" else MODEL_FILE
        return f"running {file}: {self.reason}" + (f"; {self.cache}" if self.cache else "")


def open_fastest(
    artifact: Path,
    slots: int,
    threads: int | None = None,
    *,
    kv: KvFormat | None = None,
    cache_bytes: int | None = None,
) -> tuple[OnnxRunner, GraphChoice]:
    """The runner of the faster graph of a published artifact, and why it is that one.

    The graph with the op library's kernels runs without a measurement where only it can: keys and values are not kept
    in float32, the artifact has no other graph, or there is too little memory to decode the packed layers.

    Args:
        artifact, slots, threads, kv, cache_bytes: as for `open_onnx`.

    Raises:
        InputError: as `open_onnx`.
    """
    runner = open_onnx(artifact, slots, threads, kv=kv, cache_bytes=cache_bytes)
    chosen, choice = _choose_runner(artifact, runner, slots, threads, kv)
    return chosen, replace(choice, cache=describe_cache(chosen, chosen.facts, kv))


def _choose_runner(
    artifact: Path, runner: OnnxRunner, slots: int, threads: int | None, kv: KvFormat | None
) -> tuple[OnnxRunner, GraphChoice]:
    """The runner at hand or one of the other graph."""
    if not isinstance(runner, VarlenRunner):
        return runner, GraphChoice("portable", "the artifact or this machine lacks the op library's graph")
    facts = runner.facts
    if (refusal := _why_not_measured(artifact, facts, kv)) is not None:
        return runner, GraphChoice("kernels", refusal)
    try:
        portable = PortableRunner(artifact / MODEL_FILE, facts, slots, threads)
    except InputError as error:
        return runner, GraphChoice("kernels", f"the other graph cannot be loaded: {error}")
    choice = choose(time_runner(runner), time_runner(portable), kernels_isa())
    return (runner if choice.graph == "kernels" else portable), choice


def choose(kernels: GraphTimes, portable: GraphTimes, isa: str) -> GraphChoice:
    """The graph by its times; `isa` is the instruction set that the kernels were measured with."""
    if portable.total * MARGIN < kernels.total:
        return GraphChoice("portable", f"sparse does not pay here: {_ratios(kernels, portable, 'the kernels', isa)}")
    return GraphChoice("kernels", _ratios(portable, kernels, MODEL_FILE, isa))


def time_runner(runner: OnnxRunner, clock: Callable[[], float] = time.perf_counter) -> GraphTimes:
    """Measure a runner on its slot 0, whose cache is overwritten; the best of up to `ROUNDS` rounds after a first."""
    generated = min(GENERATED_TOKENS, runner.context_length - 1)
    tokens = max(1, min(PROMPT_TOKENS, runner.context_length - generated))
    prompt = [index % runner.vocab_size for index in range(tokens)]
    best, started = _round(runner, prompt, generated, clock), clock()
    for _ in range(ROUNDS):
        if clock() - started > SECONDS:
            break
        found = _round(runner, prompt, generated, clock)
        best = GraphTimes(min(best.prompt, found.prompt), min(best.token, found.token))
    return GraphTimes(best.prompt * PROMPT_TOKENS / tokens, best.token)


def _round(runner: OnnxRunner, prompt: list[int], generated: int, clock: Callable[[], float]) -> GraphTimes:
    started = clock()
    runner.prefill(0, prompt, 0, [len(prompt) - 1])
    prompted = clock()
    for step in range(generated):
        runner.decode(0, prompt[:1], [len(prompt) + step])
    return GraphTimes(prompted - started, (clock() - prompted) / generated)


def _ratios(slower: GraphTimes, faster: GraphTimes, other: str, isa: str) -> str:
    return (
        f"{slower.prompt / faster.prompt:.2f} times as fast as {other} in reading a prompt and "
        f"{slower.token / faster.token:.2f} times in generating, measured here, kernels with {isa}"
    )


def _why_not_measured(artifact: Path, facts: LanguageModelFacts, kv: KvFormat | None) -> str | None:
    if facts.context_length < 2:
        return "the context is too short to measure in"
    if (kept := kv or facts.kv_cache) != "float32":
        return f"only it keeps keys and values as {kept}"
    cells = sum(layer.out_features * layer.in_features for layer in read_manifest(artifact).layers)
    needed, available = PORTABLE_BYTES_A_CELL * cells, available_bytes()
    if available is not None and needed > available / 2:
        return (
            f"not measured against {MODEL_FILE}, whose {cells:,} possible links take about {needed / 1e9:.1f} GB to "
            f"decode; {available / 1e9:.1f} GB are free"
        )
    return None
