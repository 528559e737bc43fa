"""The runner alone: the same prompts and tokens as a server has, without scheduler, sampling, server or client."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..runtime.opening import open_onnx
from ..runtime.runner import MixedRunner, Runner, Segment
from .processes import Answer, Helper

CHUNK = 128


@dataclass(frozen=True)
class RunnerQuestion:
    """Which load to run: prompts that are decoded together, and how many tokens each gets."""

    artifact: Path
    graph: Literal["auto", "portable"]
    threads: int
    prompts: Sequence[Sequence[int]]
    new_tokens: int


@dataclass(frozen=True)
class RunnerAnswer:
    """Tokens per second, and seconds of a processor for each; reading the prompts is included."""

    tokens_per_second: float
    processor_seconds: float


def measure_runner(question: RunnerQuestion) -> RunnerAnswer:
    """Run the load in a process of its own: what a runtime leaves behind must not disturb the rest."""
    with Helper("the runner alone", _prepare) as helper:
        answer: RunnerAnswer = helper.ask(question)
    return answer


def _prepare() -> Answer:
    return _run


def _run(question: RunnerQuestion) -> RunnerAnswer:
    slots = len(question.prompts)
    runner = open_onnx(question.artifact, slots, question.threads, graph=question.graph)
    _generate(runner, question.prompts, 2)  # what happens once: memory that was never touched
    clock, processor = time.perf_counter(), time.process_time()
    _generate(runner, question.prompts, question.new_tokens)
    tokens = slots * question.new_tokens
    return RunnerAnswer(tokens / (time.perf_counter() - clock), (time.process_time() - processor) / tokens)


def _generate(runner: Runner, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Read every prompt in chunks, then decode all together. Which tokens they are does not change what they cost."""
    for slot, prompt in enumerate(prompts):
        for start in range(0, len(prompt), CHUNK):
            ids = prompt[start : start + CHUNK]
            runner.prefill(slot, ids, start, [len(ids) - 1])
    for step in range(new_tokens - 1):
        past = [len(prompt) + step for prompt in prompts]
        if isinstance(runner, MixedRunner):
            runner.step([Segment(slot, (prompt[0],), past[slot], (0,)) for slot, prompt in enumerate(prompts)])
        else:
            runner.decode(0, [prompt[0] for prompt in prompts], past)
