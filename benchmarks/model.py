"""Whole language models: every variant in a process of its own, timed in turns.

Legend: B sequences decoded together.

A process of its own shows a variant's memory; taking turns lets what disturbs the machine disturb all alike. What
builds the variants is imported only where they are built: torch is no part of what a server holds.
"""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np

from ..artifacts import CheckError, InputError, LanguageModelFacts
from ..serve.engine.onnxruntime import OnnxRunner, cache_bytes_per_slot
from ..serve.engine.portable import PortableRunner
from ..serve.engine.varlen import VarlenRunner
from .machine import read_bandwidth
from .timing import warm_up
from .variants import BASELINE, VARIANTS, Variant, graph_file

PREFILL_CHUNK = 128
ROUNDS = 7
_SECONDS_A_TURN = 0.25
_READY_SECONDS = 600


@dataclass(frozen=True)
class ModelCase:
    """What to time.

    Attributes:
        model: a named size (see `builds.SIZES`), or a model directory.
        density: of the named sizes.
        variants: names in VARIANTS; the dense float32 baseline is always among them.
        context: tokens that each sequence holds when it is decoded.
        prefill: tokens of the prompt that is read.
        batches: sequences decoded together.
        threads: of ONNX Runtime.
    """

    model: str
    density: float = 0.3
    variants: tuple[str, ...] = tuple(VARIANTS)
    context: int = 256
    prefill: int = 128
    batches: tuple[int, ...] = (1, 16)
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"--density {self.density} is outside (0, 1]")
        if unknown := set(self.variants) - set(VARIANTS):
            raise InputError(f"--variants: '{sorted(unknown)[0]}' is none of {', '.join(VARIANTS)}")
        if not self.batches or min(self.context, self.prefill, self.threads, *self.batches) < 1:
            raise InputError("--context, --prefill, --threads and --batches must be at least 1")

    @property
    def forms(self) -> list[Variant]:
        """The variants, the baseline first."""
        return [VARIANTS[name] for name in dict.fromkeys((BASELINE, *self.variants))]


@dataclass(frozen=True)
class ModelRow:
    """One variant: tokens a second, seconds to the first token of a prompt, and bytes.

    `decode` maps B to tokens a second of all sequences together; `roofline` is the most that the memory bandwidth
    would allow at B = 1, and `share` how much of that is reached. `ratios` are over dense float32.
    """

    variant: str
    prefill: float
    first_token_seconds: float
    decode: dict[int, float]
    ratios: dict[str, float]
    resident_bytes: int
    file_bytes: int
    bytes_a_token: int
    roofline: float
    share: float


def run_model(case: ModelCase, directory: Path, on_step: Callable[[str], None] = lambda step: None) -> list[ModelRow]:
    """Build the variants in `directory`, which the caller removes, and time them.

    Raises:
        InputError: the model is unfit, or a context longer than the model's own is asked for.
    """
    on_step(f"building {case.model}")
    facts = _build(case, directory)
    on_step("measuring the memory bandwidth")
    bandwidth = read_bandwidth(case.threads)
    with ExitStack() as stack:
        workers = {}
        for variant in case.forms:
            on_step(f"loading {variant.name}")
            workers[variant.name] = stack.enter_context(Worker(variant, graph_file(directory, variant), facts, case))
        seconds = {measure: _in_turns(workers, measure, on_step) for measure in _measures(case)}
        resident = {name: int(worker.ask(("resident", 0))) for name, worker in workers.items()}
    return [_row(case, directory, facts, variant, seconds, resident, bandwidth) for variant in case.forms]


Measure = tuple[str, int]
"""What a worker is asked: ("prefill", tokens), ("decode", B) or ("resident", 0)."""


def _measures(case: ModelCase) -> list[Measure]:
    return [("prefill", case.prefill), *(("decode", batch) for batch in case.batches)]


def _build(case: ModelCase, directory: Path) -> LanguageModelFacts:
    """In a process of its own: the whole model in float32 must not stay in memory."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_build_all, args=(case, directory, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError as error:
        raise CheckError(f"the process that builds {case.model} ended: is there enough memory?") from error
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _build_all(case: ModelCase, directory: Path, answer: Connection) -> None:
    from .builds import build_variants, load_model

    try:
        source = load_model(case.model, case.density, _context_length(case))
        if source.facts().context_length < _context_length(case):
            raise InputError(
                f"--context {case.context} does not fit the model's {source.facts().context_length} tokens"
            )
        for _ in build_variants(source, case.forms, directory):
            continue
        answer.send(source.facts())
    except InputError as error:
        answer.send(error)


def _context_length(case: ModelCase) -> int:
    """Room for the tokens that are decoded while timing."""
    return max(case.context + 1, case.prefill)


class Worker:
    """A process that holds one variant and measures it when asked."""

    def __init__(self, variant: Variant, path: Path, facts: LanguageModelFacts, case: ModelCase) -> None:
        self._name = variant.name
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_work, args=(variant, path, facts, case, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        self.ask(None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        self._process.join()

    def ask(self, measure: Measure | None) -> float:
        """The measure's value; None waits until the variant is loaded. Raises CheckError where the process ended."""
        try:
            if measure is not None:
                self._connection.send(measure)
            if not self._connection.poll(_READY_SECONDS):
                raise CheckError(f"{self._name} did not answer in {_READY_SECONDS} s")
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise CheckError(f"the process of {self._name} ended: is there enough memory?") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _work(variant: Variant, path: Path, facts: LanguageModelFacts, case: ModelCase, pipe: Connection) -> None:
    try:
        runner = _runner(variant, path, facts, max(case.batches), case.threads)
        _fill(runner, case.context)
        pipe.send(0.0)
        while True:
            pipe.send(_measure(runner, case, pipe.recv()))
    except InputError as error:
        pipe.send(error)
    except EOFError:
        return  # the parent has what it wanted


def _runner(variant: Variant, path: Path, facts: LanguageModelFacts, slots: int, threads: int) -> OnnxRunner:
    if variant.sparse:
        return VarlenRunner(path, facts, slots, threads, variant.kv)
    return PortableRunner(path, facts, slots, threads)


def _fill(runner: OnnxRunner, context: int) -> None:
    """Give every slot a context: memory that was never written costs less to read."""
    ids = np.random.default_rng(0).integers(0, runner.vocab_size, context).tolist()
    for slot in range(runner.slots):
        for past in range(0, context, PREFILL_CHUNK):
            runner.prefill(slot, ids[past : past + PREFILL_CHUNK], past, [])


def _measure(runner: OnnxRunner, case: ModelCase, measure: Measure) -> float:
    kind, size = measure
    if kind == "resident":
        return float(_resident_bytes())
    if kind == "prefill":
        ids = np.random.default_rng(1).integers(0, runner.vocab_size, size).tolist()
        return _timed(lambda: runner.prefill(0, ids, 0, [size - 1]), case.threads)
    past = [case.context] * size
    return _timed(lambda: runner.decode(0, [1] * size, past), case.threads)


def _timed(call: Callable[[], object], threads: int) -> float:
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


def _in_turns(workers: dict[str, Worker], measure: Measure, on_step: Callable[[str], None]) -> dict[str, float]:
    """Median seconds of one step, by variant."""
    on_step(f"timing {measure[0]} {measure[1]}")
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            seconds[name].append(worker.ask(measure))
    return {name: median(values) for name, values in seconds.items()}


def _row(
    case: ModelCase,
    directory: Path,
    facts: LanguageModelFacts,
    variant: Variant,
    seconds: dict[Measure, dict[str, float]],
    resident: dict[str, int],
    bandwidth: float,
) -> ModelRow:
    from .builds import bytes_a_token, model_bytes

    path = graph_file(directory, variant)
    kv_bytes = cache_bytes_per_slot(facts, variant.kv) // facts.context_length
    read = bytes_a_token(path, kv_bytes, case.context)
    first_token = seconds["prefill", case.prefill][variant.name]
    decode = {batch: batch / seconds["decode", batch][variant.name] for batch in case.batches}
    return ModelRow(
        variant=variant.name,
        prefill=case.prefill / first_token,
        first_token_seconds=first_token,
        decode=decode,
        ratios={f"{kind} {size}": times[BASELINE] / times[variant.name] for (kind, size), times in seconds.items()},
        resident_bytes=resident[variant.name],
        file_bytes=model_bytes(path),
        bytes_a_token=read,
        roofline=bandwidth / read,
        share=decode[1] * read / bandwidth if 1 in decode else float("nan"),
    )
