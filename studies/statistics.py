"""Means, spreads, and what three seeds can tell apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from .runner import chosen_run
from .study import Arm, Claim, Outcome, Run, Study

# Two-sided 95% quantiles of Student's t at 2 (n - 1) degrees of freedom, for n seeds an arm.
_T_95 = {2: 4.303, 3: 2.776, 4: 2.447, 5: 2.306, 6: 2.228, 7: 2.179, 8: 2.145, 9: 2.120, 10: 2.101}


@dataclass(frozen=True)
class Cell:
    """An arm at a density, all of its runs made: the chosen run of the search, and the outcomes by seed."""

    chosen: Run
    outcomes: tuple[Outcome, ...]

    @property
    def arm(self) -> Arm:
        """Of the runs."""
        return self.chosen.arm

    @property
    def density(self) -> float:
        """Of the runs."""
        return self.chosen.density

    @property
    def scores(self) -> list[float]:
        """On the reported split."""
        return [outcome.score for outcome in self.outcomes]

    @property
    def mean(self) -> float:
        """Of the scores."""
        return mean(self.scores)

    @property
    def spread(self) -> float:
        """Standard deviation of the scores over seeds."""
        return stdev(self.scores)


@dataclass(frozen=True)
class Difference:
    """Of two means, with the half width of its 95% interval (Student's t, pooled variance)."""

    value: float
    half_width: float

    @property
    def verdict(self) -> str:
        """Whether the interval is above 0, below, or has 0 in it."""
        if self.value - self.half_width > 0:
            return "supported"
        return "contradicted" if self.value + self.half_width < 0 else "undecided"


def finished_cells(study: Study, outcomes: Mapping[str, Outcome]) -> dict[tuple[str, float], Cell]:
    """By name of the arm and density: the cells whose runs are all made."""
    cells = {}
    for arm, density in study.cells():
        chosen = chosen_run(study, arm, density, outcomes)
        keys = [] if chosen is None else [run.key for run in study.reported_runs(chosen)]
        if chosen is not None and all(key in outcomes for key in keys):
            cells[arm.name, density] = Cell(chosen, tuple(outcomes[key] for key in keys))
    return cells


def difference(first: Cell, second: Cell) -> Difference:
    """Of the means, first minus second."""
    seeds = len(first.outcomes)
    pooled = ((first.spread**2 + second.spread**2) / 2) ** 0.5
    return Difference(first.mean - second.mean, _T_95[seeds] * pooled * (2 / seeds) ** 0.5)


def advantage(study: Study, claim: Claim, first: Cell, second: Cell) -> Difference:
    """By how much the first is better, its margin granted."""
    found = difference(first, second)
    sign = 1 if study.higher_is_better else -1
    return Difference(sign * found.value + claim.margin * second.mean, found.half_width)


def judge(study: Study, claim: Claim, cells: Mapping[tuple[str, float], Cell]) -> dict[str, Difference] | None:
    """The claim's advantage over each of the others; None while runs are missing."""

    def find(name: str) -> Cell | None:
        densities = study.arm(name).densities
        return cells.get((name, densities[0] if densities else claim.density))

    first = find(claim.arm)
    others = {name: find(name) for name in claim.others}
    if first is None or None in others.values():
        return None
    return {name: advantage(study, claim, first, other) for name, other in others.items() if other is not None}
