"""Quality against speed and size: one model, dense and at several densities, in every form that the runtimes have.

Each sparse model is pruned once, to float32 weights, and each form rounds these when it is built; a directory that was
pruned for its form, or trained on, is named by the user and stands beside them.
"""

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from ..artifacts import InputError, read_manifest
from ..artifacts.manifest import MANIFEST_FILE, file_digest
from ..artifacts.model_directory import open_model_directory
from ..artifacts.tokenizer_files import read_tokenizer
from ..data.questions import load_questions
from ..evaluate.choices import token_question
from ..train.prune.config import PruneConfig
from ..train.prune.publish import Texts, measured_windows, open_pretrained, prune_directory
from ..train.topology.structure import Structure, StructureKind
from .budget import NO_BUDGET, Budget
from .endings import scratch_directory
from .frontier_rows import FrontierRow, FrontierRows
from .machine import Machine
from .model import ModelCase, ModelRow, run_model
from .worker import Asked, Questions, Text

DENSE_FORMS = ("dense float32", "dense 4-bit", "dense 8-bit")
FORMS = {
    "float32": "sparse float32",
    "bfloat16": "sparse bfloat16",
    "int8": "sparse int8",
    "int4": "sparse int4",
}
"""The variant that is measured for each type of values."""
DENSE = "dense"


@dataclass(frozen=True)
class FrontierCase:
    """What to measure.

    Attributes:
        model: directory of the dense model.
        texts: what is calibrated on, and which texts perplexity is measured on: their held-out documents.
        models: directories of sparse models of the same tokenizer, such as ones that were trained on.
        zero_shot: sets of questions, as `load_questions` names them, of which each form answers so many (`questions`).
        densities: of one-shot pruning; none for named models alone.
        structures: of one-shot pruning, each at the densities that it admits.
        values: keys of `FORMS`.
        passes: of reconstruction in one-shot pruning.
        context, prefill, batches, threads: as `ModelCase`.
    """

    model: Path
    texts: Texts
    models: tuple[Path, ...] = ()
    zero_shot: tuple[str, ...] = ()
    questions: int = 200
    densities: tuple[float, ...] = (0.5, 0.7, 0.3)
    structures: tuple[StructureKind, ...] = get_args(StructureKind)
    values: tuple[str, ...] = ("int8", "float32", "bfloat16", "int4")
    passes: int = 2
    context: int = 256
    prefill: int = 128
    batches: tuple[int, ...] = (1, 16)
    threads: int = 1

    def __post_init__(self) -> None:
        for option, found, known in (
            ("--values", self.values, FORMS),
            ("--structures", self.structures, get_args(StructureKind)),
        ):
            if unknown := set(found) - set(known):
                raise InputError(f"{option}: '{sorted(unknown)[0]}' is none of {', '.join(known)}")
        if self.questions < 1:
            raise InputError(f"--questions must be at least 1, not {self.questions}")
        if not self.values:
            raise InputError("--values names no type of values")
        for structure, density in product(self.structures, self.densities):
            self.pruning(structure, density)

    def pruning(self, structure: StructureKind, density: float) -> PruneConfig:
        """How a one-shot model is made; InputError for a density outside (0, 1]."""
        return PruneConfig(density=density, structure=structure, passes=self.passes)

    @property
    def one_shot(self) -> list[tuple[StructureKind, float]]:
        """The models to prune, what tells most first: the first densities of the first structures."""
        pairs = [
            (place + number, structure, density)
            for (place, structure), (number, density) in product(enumerate(self.structures), enumerate(self.densities))
            if density <= Structure(structure).max_density
        ]
        return [(structure, density) for _, structure, density in sorted(pairs, key=lambda pair: pair[0])]

    @property
    def measured(self) -> list[str]:
        """The names of the texts that perplexity is measured on; the first decides what is ahead."""
        return self.texts.measured or [self.texts.calibration]

    @property
    def planned(self) -> set[tuple[str, str]]:
        """Model and form of each row that there is to be."""
        names = [path.name for path in self.models] + [_name(*pair) for pair in self.one_shot]
        sparse = product(names, (FORMS[values] for values in self.values))
        return {(DENSE, form) for form in DENSE_FORMS} | set(sparse)

    def common(self, machine: Machine) -> dict[str, Any]:
        """What all rows of a folder share; InputError where the model, or one of the named ones, is none."""
        for path in (self.model, *self.models):
            open_model_directory(path)
        names = ("zero_shot", "questions", "passes", "context", "prefill", "batches", "threads")
        facts = {name: getattr(self, name) for name in names}
        if not self.zero_shot:  # no question is asked: whatever number was given, the rows are the same
            facts["questions"] = FrontierCase.questions
        return {
            "model": self.model.name,
            "weights": _weights_digest(self.model),
            "texts": asdict(self.texts),
            "processor": machine.processor,
            "isa": machine.isa,
            **facts,
        }


@dataclass(frozen=True)
class _Point:
    """Weights to measure: where they are, and what a row says of them."""

    model: str
    path: Path
    source: str
    trained: bool
    density: float
    forms: tuple[str, ...]


def run_frontier(
    case: FrontierCase,
    rows: FrontierRows,
    folder: Path,
    machine: Machine,
    on_step: Callable[[str], None] = lambda step: None,
    budget: Budget = NO_BUDGET,
) -> Generator[FrontierRow, None, None]:
    """Measure what is not yet among the rows, add each row when it is there, and yield it.

    The dense model comes first, then the named models, then those that are pruned here, into `folder`/models. However
    small the budget is, one form is measured that was not yet; no other is begun when it is over.

    Raises:
        InputError: of a model, a text or a density; CheckError: a process ended before its answer.
    """
    asked = _asked(case)
    found = {row.key for row in rows.rows()}
    begun = False
    for place in _points(case, folder):
        if begun and not budget.left():
            return
        point = place(on_step)
        left = tuple(form for form in point.forms if (point.source, form) not in found)
        if not left:
            continue
        begun = True
        with (
            scratch_directory() as scratch,
            closing(run_model(_model_case(case, point, left), scratch, on_step, budget, asked)) as measured,
        ):
            for row in measured:
                if row.variant in left:
                    made = _row(case, point, row, machine)
                    rows.add(made)
                    yield made


def _asked(case: FrontierCase) -> dict[str, Asked]:
    """What the quality of every form is measured by, in the tokens of the dense model."""
    model, tokenizer = open_pretrained(str(case.model), case.texts.sequence_length)
    reader, context = read_tokenizer(case.model), int(model.config.max_position_embeddings)
    asked: dict[str, Asked] = {
        name: Text(measured_windows(tokenizer, name, case.texts).tolist()) for name in case.measured
    }
    for name in case.zero_shot:
        questions = load_questions(name, case.questions)
        asked[name] = Questions(
            [token_question(reader, question, tokenizer.eos_token_id, context) for question in questions]
        )
    return asked


def _points(case: FrontierCase, folder: Path) -> list[Callable[[Callable[[str], None]], _Point]]:
    """What gives each set of weights, in order; a one-shot model is made when it is asked for."""

    def named(path: Path) -> Callable[[Callable[[str], None]], _Point]:
        return lambda on_step: _sparse_point(case, path, path.name, trained=True)

    def pruned(structure: StructureKind, density: float) -> Callable[[Callable[[str], None]], _Point]:
        return lambda on_step: _prune(case, structure, density, folder / "models", on_step)

    return [
        lambda on_step: _Point(DENSE, case.model, DENSE, False, 1.0, DENSE_FORMS),
        *map(named, case.models),
        *(pruned(*pair) for pair in case.one_shot),
    ]


def _prune(
    case: FrontierCase, structure: StructureKind, density: float, models: Path, on_step: Callable[[str], None]
) -> _Point:
    name = _name(structure, density)
    path = models / f"{structure.replace(':', '-')}-{density:g}"
    if not (path / MANIFEST_FILE).is_file():
        models.mkdir(exist_ok=True)
        prune_directory(
            str(case.model),
            case.texts,
            case.pruning(structure, density),
            path,
            lambda what, done, of: on_step(f"pruning {name}: {what}, {done} of {of} blocks done"),
            on_step,
        )
    return _sparse_point(case, path, name, trained=False)


def _name(structure: StructureKind, density: float) -> str:
    return f"{structure}, {density:.0%}"


def _sparse_point(case: FrontierCase, path: Path, name: str, *, trained: bool) -> _Point:
    """A sparse directory; InputError where it is none, or is damaged."""
    directory = open_model_directory(path)
    if directory.manifest is None or directory.masks is None:
        raise InputError(f"--models: {path} is no sparse model directory, such as `hebbline prune` and `train` write")
    layers = read_manifest(path).layers
    possible = sum(layer.out_features * layer.in_features for layer in layers)
    density = sum(layer.links for layer in layers) / max(1, possible)
    forms = tuple(FORMS[values] for values in case.values)
    return _Point(name, path, _weights_digest(path), trained, density, forms)


def _model_case(case: FrontierCase, point: _Point, forms: tuple[str, ...]) -> ModelCase:
    return ModelCase(
        model=str(point.path.absolute()),  # a bare name may be one of `SIZES`
        variants=forms,
        context=case.context,
        prefill=case.prefill,
        batches=case.batches,
        threads=case.threads,
    )


def _row(case: FrontierCase, point: _Point, row: ModelRow, machine: Machine) -> FrontierRow:
    decode = {f"decode {batch}": rate for batch, rate in row.decode.items()}
    prefill = next(name for name in row.ratios if name.startswith("prefill"))
    return FrontierRow(
        model=point.model,
        source=point.source,
        trained=point.trained,
        density=point.density,
        variant=row.variant,
        perplexity={name: row.quality[name] for name in case.measured},
        accuracy={name: row.quality[name] for name in case.zero_shot},
        rates={prefill: row.prefill, **decode},
        ratios=row.ratios,
        resident_bytes=row.resident_bytes,
        file_bytes=row.file_bytes,
        commit=machine.commit,
    )


def _weights_digest(path: Path) -> str:
    """Tells the weights of one directory from those of another: SHA-256 of its files of weights and masks."""
    files = {file.name: file_digest(file) for file in sorted(path.iterdir()) if file.suffix in (".safetensors", ".bin")}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
