"""What a table compares: arms, densities, learning rates to choose from, seeds, and how a run is scored.

Every arm gets the same search: each learning rate once, with a seed and judged on a split that are not reported.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..train.dynamics import SparsityConfig
from ..train.dynamics.config import UpdateConfig

Purpose = Literal["tuning", "report"]
TUNING_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A row of a table. `sparsity` holds fields of `SparsityConfig`; density, seed and updates come from the run.

    `densities` are those it is run at; None for those of the study.
    """

    name: str
    sparsity: Mapping[str, Any]
    densities: tuple[float, ...] | None = None


DENSE = Arm("dense", {"method": "dense"}, densities=(1.0,))


@dataclass(frozen=True)
class Run:
    """One training: of an arm at a density, with a learning rate and a seed."""

    arm: Arm
    density: float
    rate: float
    seed: int
    purpose: Purpose

    @property
    def key(self) -> str:
        """What tells it from the other runs of its study."""
        return f"{self.arm.name} | {self.density:g} | {self.purpose} | {self.rate:g} | {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Args:
        score: on the split that the run's purpose says: the one learning rates are chosen by, or the one tables show.
        seconds: processor seconds of the training steps, updates included.
        updates: topology updates.
        itop: of all possible links, the share that ever was.
        survived: mean share of the links of an update that the next one kept; None where none were grown.
        facts: figures of the study's own.
    """

    score: float
    seconds: float
    updates: int
    itop: float
    survived: float | None
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """That an arm is at least as good as each of others, at a density.

    `margin` is the share of the other's score by which it may be worse.
    """

    text: str
    arm: str
    others: tuple[str, ...]
    density: float
    margin: float = 0.0


@dataclass(frozen=True)
class Study(ABC):
    """A table. Subclasses say how a run is trained and scored.

    Args:
        name: of the ledger and of the section.
        title: heading of the section.
        metric: what is scored, such as "perplexity".
        higher_is_better: of the metric.
        arms: the rows.
        densities: of the sparse arms.
        rates: learning rates to choose from, ascending.
        seeds: of the reported runs; `TUNING_SEED` is not among them.
        budget: in words, all that a run's length and size depend on; runs of another budget do not count.
        claims: what the table is asked.
        note: what a reader must know of the data.
    """

    name: str
    title: str
    metric: str
    higher_is_better: bool
    arms: tuple[Arm, ...]
    densities: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    budget: str
    claims: tuple[Claim, ...]
    note: str

    @abstractmethod
    def perform(self, run: Run) -> Outcome:
        """Train, and score on the split of the run's purpose."""

    def cells(self) -> Iterator[tuple[Arm, float]]:
        """Every arm at every density of its own: dense first, then density by density."""
        for arm in self.arms:
            for density in arm.densities or ():
                yield arm, density
        for density in self.densities:
            for arm in self.arms:
                if arm.densities is None:
                    yield arm, density

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def tuning_runs(self, arm: Arm, density: float) -> list[Run]:
        """The search of one cell."""
        return [Run(arm, density, rate, TUNING_SEED, "tuning") for rate in self.rates]

    def reported_runs(self, arm: Arm, density: float, rate: float) -> list[Run]:
        """The reported runs of one cell, once its learning rate is chosen."""
        return [Run(arm, density, rate, seed, "report") for seed in self.seeds]

    def best(self, scores: Mapping[float, float]) -> float:
        """The rate with the best score; a score that is not a number is the worst."""
        sign = -1 if self.higher_is_better else 1
        return min(scores, key=lambda rate: sign * scores[rate] if scores[rate] == scores[rate] else float("inf"))


def sparsity_of(run: Run, steps: int, updates: int, share: tuple[int, int] = (4, 5)) -> SparsityConfig:
    """The arm's sparsity for a run of so many steps: `updates` topology updates in the first `share` of them."""
    every = max(1, steps * share[0] // share[1] // updates)
    update = UpdateConfig(every=every, stop=every * updates)
    return SparsityConfig(density=run.density, seed=run.seed, update=update, **run.arm.sparsity)
