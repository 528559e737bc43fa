"""Makes the runs of a study that its ledger does not have yet; stop and start it as you like."""

import time
from collections.abc import Callable, Iterator, Mapping

import torch

from ..benchmarks.machine import describe_machine
from .ledger import Ledger
from .study import DENSE, Arm, Outcome, Run, Study


def chosen_run(study: Study, arm: Arm, density: float, outcomes: Mapping[str, Outcome]) -> Run | None:
    """The best run of a cell's search, whose learning rate and variant are reported; None while it has runs to make."""
    runs = {run.key: run for run in study.tuning_runs(arm, density)}
    scores = {key: outcomes[key].score for key in runs if key in outcomes}
    return runs[study.best(scores)] if len(scores) == len(runs) else None


def missing_runs(study: Study, outcomes: Mapping[str, Outcome]) -> list[Run]:
    """Runs that can be made now, in the order in which a study that is cut short says most: density by density, first
    the searches, then what is reported, seed by seed. Dense comes last, as a step of it may take ten times as long."""

    def place(run: Run) -> tuple[bool, int, bool, int]:
        others = run.density not in study.densities
        density = len(study.densities) if others else study.densities.index(run.density)
        return run.arm.name == DENSE.name, density, run.purpose == "report", run.seed

    return sorted((run for run in _known_runs(study, outcomes) if run.key not in outcomes), key=place)


def count_runs(study: Study) -> int:
    """All runs of a study."""
    return sum(len(study.tuning_runs(*cell)) + len(study.seeds) for cell in study.cells())


def count_made(study: Study, outcomes: Mapping[str, Outcome]) -> int:
    """Those of them that are made; what was reported at a learning rate that is not the chosen one does not count."""
    return sum(run.key in outcomes for run in _known_runs(study, outcomes))


def _known_runs(study: Study, outcomes: Mapping[str, Outcome]) -> Iterator[Run]:
    """The searches, and what is reported of what they have chosen so far."""
    for arm, density in study.cells():
        yield from study.tuning_runs(arm, density)
        if (chosen := chosen_run(study, arm, density, outcomes)) is not None:
            yield from study.reported_runs(chosen)


def work(ledger: Ledger, tell: Callable[[int, str], object], minutes: float | None = None) -> None:
    """Make missing runs, one after the other on one thread, until there are none or the time is over.

    Args:
        ledger: of the study; other workers may share it.
        tell: called with the number of runs that are made, and the run that begins.
        minutes: no run begins after so many; None for no end.
    """
    torch.set_num_threads(1)
    commit = describe_machine().commit
    started = time.monotonic()
    while minutes is None or time.monotonic() - started < 60 * minutes:
        outcomes = ledger.outcomes()
        made = count_made(ledger.study, outcomes)
        if not any(_make(ledger, run, commit, tell, made) for run in missing_runs(ledger.study, outcomes)):
            return


def _make(ledger: Ledger, run: Run, commit: str, tell: Callable[[int, str], object], made: int) -> bool:
    """Make a run, unless another worker has it."""
    with ledger.claim(run) as claimed:
        if claimed:
            tell(made, run.key)
            ledger.append(run, ledger.study.perform(run), commit)
        return claimed
