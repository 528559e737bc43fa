"""What a table compares: arms, densities, learning rates to choose from, seeds, and how a run is scored.

Every arm gets the same search: each learning rate once, with a seed and judged on a split that are not reported. An arm
with variants gets it for each of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from ..train.dynamics import SparsityConfig
from ..train.dynamics.config import UpdateConfig

Purpose = Literal["tuning", "report"]
Choice = TypeVar("Choice")
TUNING_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A row of a table. `sparsity` holds fields of `SparsityConfig`; density, seed and updates come from the run.

    `densities` are those it is run at; None for those of the study. `variants` are further fields by name, such as "r =
    0", of which the search chooses one set together with the learning rate; empty where there is no such choice.
    """

    name: str
    sparsity: Mapping[str, Any]
    densities: tuple[float, ...] | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


DENSE = Arm("dense", {"method": "dense"}, densities=(1.0,))


@dataclass(frozen=True)
class Run:
    """One training: of an arm, or a variant of it, at a density, with a learning rate and a seed."""

    arm: Arm
    density: float
    rate: float
    seed: int
    purpose: Purpose
    variant: str = ""

    @property
    def key(self) -> str:
        """What tells it from the other runs of its study."""
        key = f"{self.arm.name} | {self.density:g} | {self.purpose} | {self.rate:g} | {self.seed}"
        return f"{key} | {self.variant}" if self.variant else key

    @property
    def sparsity(self) -> Mapping[str, Any]:
        """The arm's fields of `SparsityConfig`, and those of the variant."""
        return {**self.arm.sparsity, **(self.arm.variants[self.variant] if self.variant else {})}


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
class Twin:
    """A study with some of the same arms, whose means a column of the page takes from those of another.

    Args:
        study: that study.
        label: heading of the column.
    """

    study: "Study"
    label: str


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
        control: the arm that the others are compared with in the table.
        twin: another study to compare each arm with; None for none.
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
    control: str = field(default="static ER", kw_only=True)
    twin: Twin | None = field(default=None, kw_only=True)

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
        variants = list(arm.variants) or [""]
        choices = [(variant, rate) for variant in variants for rate in self.rates]
        return [Run(arm, density, rate, TUNING_SEED, "tuning", variant) for variant, rate in choices]

    def reported_runs(self, chosen: Run) -> list[Run]:
        """The reported runs of one cell, once the best run of its search is known."""
        return [replace(chosen, seed=seed, purpose="report") for seed in self.seeds]

    def best(self, scores: Mapping[Choice, float]) -> Choice:
        """Of what was tried, that with the best score; a score that is not a number is the worst."""
        sign = -1 if self.higher_is_better else 1
        return min(scores, key=lambda tried: sign * scores[tried] if scores[tried] == scores[tried] else float("inf"))


def sparsity_of(run: Run, steps: int, updates: int, share: tuple[int, int] = (4, 5), warmup: int = 0) -> SparsityConfig:
    """The arm's sparsity for a run of so many steps: `updates` topology updates in the first `share` of them.

    Learning rates rise again over `warmup` steps after each.
    """
    every = max(1, steps * share[0] // share[1] // updates)
    update = UpdateConfig(every=every, stop=every * updates, warmup=min(warmup, every))
    return SparsityConfig(density=run.density, seed=run.seed, update=update, **run.sparsity)
