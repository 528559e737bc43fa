"""Whole language models: every variant in a process of its own, timed in turns with the dense float32 one.

Legend: B sequences decoded together.

A process of its own shows a variant's memory; taking turns lets what disturbs the machine disturb both alike. Rows
come as they are measured: a variant is built, timed and gone before the next one. What builds the variants is
imported only where they are built: torch is no part of what a server holds.
"""

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ..artifacts import InputError, LanguageModelFacts
from ..kernels.isa import kernels_isa
from ..runtime.onnxruntime import cache_bytes_per_slot
from .budget import NO_BUDGET, Budget
from .machine import read_bandwidth
from .outlook import bound_by
from .processes import Helper
from .variants import BASELINE, VARIANTS, Variant
from .worker import READY, RESIDENT, Asked, Measure, open_worker

ROUNDS = 7
_MEASURE_SECONDS = 20.0
"""Begin no further round of a measure after so many: a slow model is timed less often instead of for minutes."""
_READY_SECONDS = 600
_QUALITY_SECONDS = 3600
"""Long enough for a text on a slow machine."""


@dataclass(frozen=True)
class ModelCase:
    """What to time.

    Attributes:
        model: a named size (see `builds.SIZES`), or a model directory.
        density: of the named sizes.
        variants: names in VARIANTS, timed in this order; the dense float32 baseline is always among them.
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

    @property
    def measures(self) -> list[Measure]:
        """What is timed of each variant."""
        return [("prefill", self.prefill), *(("decode", batch) for batch in self.batches)]


@dataclass(frozen=True)
class ModelRow:
    """One variant: tokens a second, seconds to the first token of a prompt, and bytes.

    `decode` maps B to tokens a second of all sequences together; `roofline` is the most that the memory bandwidth
    would allow at B = 1, and `share` how much of that is reached, None where B = 1 is not measured. `ratios` are over
    dense float32 in the same rounds. `isa` is the instruction set of the kernels. `bound` is what decoding at B = 1
    spends its time on here: "memory", or "expansion" (of a dense variant "computing"), see `outlook`; None as `share`.
    `many_core_ratio` is a prediction for machines with so many cores that memory bounds every variant: the speed-up of
    decoding at B = 1 by bytes alone. `quality` has what texts and questions gave, by their names: perplexity, or the
    share of right answers.
    """

    variant: str
    isa: str
    prefill: float
    first_token_seconds: float
    decode: dict[int, float]
    ratios: dict[str, float]
    resident_bytes: int
    file_bytes: int
    bytes_a_token: int
    roofline: float
    share: float | None
    bound: str | None
    many_core_ratio: float
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A variant's graph, the bytes of its files, and those that a decode step at B = 1 reads."""

    path: Path
    file_bytes: int
    bytes_a_token: int


def run_model(
    case: ModelCase,
    directory: Path,
    on_step: Callable[[str], None] = lambda step: None,
    budget: Budget = NO_BUDGET,
    asked: Mapping[str, Asked] | None = None,
) -> Generator[ModelRow, None, None]:
    """Time the variants in the order of `case.forms`, and yield each one's row; `on_step` is told what goes on.

    Files are written to `directory`, and removed from it when they are loaded. The baseline and the first variant are
    timed however small the budget is, and no other variant is begun when it is over. What is `asked`, by name, is
    asked of the variants that the case names, through the graph that is timed.

    Raises:
        InputError: the model is unfit, a context longer than the model's own is asked for, or HEBBLINE_ISA names what
            there is not.
        CheckError: a process ended before its answer.
    """
    isa = kernels_isa()
    on_step(f"reading {case.model}")
    with Helper(f"the builds of {case.model}", _open_builder, case, directory) as builder:
        run = _Run(case, isa, builder, builder.ask(None), on_step, budget, asked or {})
        baseline, *others = case.forms
        with run.load(baseline) as dense:
            if not others:
                yield from run.rows([dense])
            for number, variant in enumerate(others):
                if number and not budget.left():
                    return
                with run.load(variant) as loaded:
                    rows = run.rows([dense, loaded])
                yield from rows[1:] if number else rows


@dataclass(frozen=True)
class _Loaded:
    variant: Variant
    built: Built
    worker: Helper


class _Run:
    """What loading and timing need of a run."""

    def __init__(
        self,
        case: ModelCase,
        isa: str,
        builder: Helper,
        facts: LanguageModelFacts,
        on_step: Callable[[str], None],
        budget: Budget,
        asked: Mapping[str, Asked],
    ) -> None:
        self._asked = asked
        self._qualities: dict[str, dict[str, float]] = {}
        self._case, self._isa, self._builder, self._facts = case, isa, builder, facts
        self._on_step, self._budget = on_step, budget
        on_step("measuring the memory bandwidth")
        self._bandwidth = read_bandwidth(case.threads)

    @contextmanager
    def load(self, variant: Variant) -> Iterator[_Loaded]:
        """Build a variant and load it into a process, which ends with the block; its files go at once."""
        self._on_step(f"building {variant.name}")
        built = self._builder.ask(variant)
        self._on_step(f"loading {variant.name}")
        case = self._case
        arguments = (variant, built.path, self._facts, max(case.batches), case.context, case.threads)
        with Helper(variant.name, open_worker, *arguments) as worker:
            worker.ask(READY, _READY_SECONDS)
            shutil.rmtree(built.path.parent)
            yield _Loaded(variant, built, worker)

    def rows(self, forms: Sequence[_Loaded]) -> list[ModelRow]:
        """The rows of what is loaded, the baseline first, timed in turns."""
        seconds = {measure: self._in_turns(forms, measure) for measure in self._case.measures}
        return [self._row(loaded, seconds, forms[0].built.bytes_a_token) for loaded in forms]

    def _in_turns(self, forms: Sequence[_Loaded], measure: Measure) -> dict[str, float]:
        """Median seconds of one step, by variant."""
        self._on_step(f"timing {measure[0]} {measure[1]} of {forms[-1].variant.name}")
        end = time.perf_counter() + min(_MEASURE_SECONDS, self._budget.left())
        seconds: dict[str, list[float]] = {loaded.variant.name: [] for loaded in forms}
        for done in range(ROUNDS):
            if done and time.perf_counter() > end:
                break
            for loaded in forms:
                seconds[loaded.variant.name].append(loaded.worker.ask(measure, _READY_SECONDS))
        return {name: median(values) for name, values in seconds.items()}

    def _row(self, loaded: _Loaded, seconds: dict[Measure, dict[str, float]], dense_bytes: int) -> ModelRow:
        name, built, case = loaded.variant.name, loaded.built, self._case
        first_token = seconds["prefill", case.prefill][name]
        decode = {batch: batch / seconds["decode", batch][name] for batch in case.batches}
        share = decode[1] * built.bytes_a_token / self._bandwidth if 1 in decode else None
        return ModelRow(
            variant=name,
            isa=self._isa,
            prefill=case.prefill / first_token,
            first_token_seconds=first_token,
            decode=decode,
            ratios={f"{kind} {size}": times[BASELINE] / times[name] for (kind, size), times in seconds.items()},
            resident_bytes=int(loaded.worker.ask(RESIDENT, _READY_SECONDS)),
            file_bytes=built.file_bytes,
            bytes_a_token=built.bytes_a_token,
            roofline=self._bandwidth / built.bytes_a_token,
            share=share,
            bound=None if share is None else bound_by(share, "expansion" if loaded.variant.sparse else "computing"),
            many_core_ratio=dense_bytes / built.bytes_a_token,
            quality=self._quality(loaded) if name in case.variants else {},
        )

    def _quality(self, loaded: _Loaded) -> dict[str, float]:
        """What was asked of a variant; of the baseline, which is beside every other, only once."""
        variant = loaded.variant.name
        if variant not in self._qualities:
            found = {}
            for name, asked in self._asked.items():
                self._on_step(f"quality of {variant} on {name}")
                found[name] = float(loaded.worker.ask(asked, _QUALITY_SECONDS))
            self._qualities[variant] = found
        return self._qualities[variant]


def _open_builder(case: ModelCase, directory: Path) -> Callable[[Variant | None], LanguageModelFacts | Built]:
    """Answers None with the model's facts, and a variant with what was built of it.

    The whole model in float32 stays in the memory of this process, which does nothing while others are timed.
    """
    from .builds import build_variant, bytes_a_token, load_model, mask_weights, model_bytes

    context = _context_length(case)
    source = load_model(case.model, case.density, context)
    facts = source.facts()
    if facts.context_length < context:
        raise InputError(f"--context {case.context} does not fit the model's {facts.context_length} tokens")
    mask_weights(source)

    def answer(variant: Variant | None) -> LanguageModelFacts | Built:
        if variant is None:
            return facts
        path = build_variant(source, variant, directory)
        kv_bytes = cache_bytes_per_slot(facts, variant.kv) // facts.context_length
        return Built(path, model_bytes(path), bytes_a_token(path, kv_bytes, case.context))

    return answer


def _context_length(case: ModelCase) -> int:
    """Room for the tokens that are decoded while timing."""
    return max(case.context + 1, case.prefill)
