"""The recipe's `sparsity` block: how masks start, change and end."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ...artifacts import InputError

Method = Literal["dense", "static", "chts", "chtss"]


@dataclass(frozen=True)
class TopologyConfig:
    """The initial graph of every layer.

    Args:
        kind: "brf" (bipartite receptive field) or "er" (uniformly random).
        r: randomness of BRF, from 0 (nearest nodes) to 1 (any node).
        degrees: degrees of BRF's smaller side: "fixed" or "uniform".
    """

    kind: Literal["brf", "er"] = "brf"
    r: float = 0.25
    degrees: Literal["fixed", "uniform"] = "fixed"

    def __post_init__(self) -> None:
        _check_range("topology.r", self.r, 0, 1)

    def parameters(self) -> dict[str, float | str]:
        """The parameters that this kind of graph takes."""
        return {"r": self.r, "degrees": self.degrees} if self.kind == "brf" else {}


@dataclass(frozen=True)
class RegrowthConfig:
    """Which absent links come.

    Args:
        score: link prediction score.
        rule: "soft" samples with probability proportional to score^temperature; "top" takes the highest.
        temperature: the exponent of the soft rule; above 1 sharpens it.
    """

    score: Literal["CH2_L3n", "CH3_L3n"] = "CH2_L3n"
    rule: Literal["soft", "top"] = "soft"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_range("regrowth.temperature", self.temperature, 0, math.inf)


@dataclass(frozen=True)
class RemovalConfig:
    """Which links go.

    Args:
        score: "magnitude" or "RI" (relative importance).
        rule: "soft" keeps a sample with probability proportional to score^temperature; "hard" keeps the highest.
        temperature: the exponent of the soft rule at the first and at the last update; linear in between.
        chains: also remove links that lead nowhere or come from nowhere.
    """

    score: Literal["magnitude", "RI"] = "magnitude"
    rule: Literal["soft", "hard"] = "soft"
    temperature: tuple[float, float] = (1.0, 9.0)
    chains: bool = False

    def __post_init__(self) -> None:
        for value in self.temperature:
            _check_range("removal.temperature", value, 0, math.inf)

    def temperature_at(self, progress: float) -> float:
        """The exponent at `progress` in [0, 1] of the updates."""
        first, last = self.temperature
        return first + (last - first) * progress


@dataclass(frozen=True)
class FractionConfig:
    """The share of links replaced in an update.

    Args:
        kind: "constant" throughout, or "cosine", falling from `initial` to 0 at the last update.
        initial: the share at the start.
    """

    kind: Literal["cosine", "constant"] = "cosine"
    initial: float = 0.1

    def __post_init__(self) -> None:
        _check_range("fraction.initial", self.initial, 0, 1)


@dataclass(frozen=True)
class UpdateConfig:
    """When masks change.

    Args:
        every: optimizer steps between updates.
        stop: the last step at which there may be an update.
    """

    every: int = 100
    stop: int = 8000

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"sparsity.update.every must be at least 1, not {self.every}")
        if self.stop < self.every:
            raise InputError(f"sparsity.update.stop {self.stop} comes before the first update, at step {self.every}")

    @property
    def count(self) -> int:
        """The number of updates."""
        return self.stop // self.every


@dataclass(frozen=True)
class SparsityConfig:
    """Everything about the masks.

    Args:
        method: "dense" (no masks), "static" (the initial masks stay), "chts" (fixed density) or "chtss" (density decays
            from `initial_density` to `density`).
        density: final share of links in every sparse layer, in (0, 1].
        initial_density: share of links at the start, of "chtss".
        schedule: how the density of "chtss" decays.
        topology: the initial graph.
        removal: which links go.
        regrowth: which links come.
        fraction: how many are replaced in an update.
        update: when.
        include: globs of the names of linear layers to make sparse.
        exclude: globs of names to leave dense.
        seed: fixes initial graphs and every random choice.
    """

    method: Method = "chtss"
    density: float = 0.3
    initial_density: float = 0.5
    schedule: Literal["sigmoid", "cubic", "linear"] = "sigmoid"
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    removal: RemovalConfig = field(default_factory=RemovalConfig)
    regrowth: RegrowthConfig = field(default_factory=RegrowthConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=lambda: ["lm_head"])
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("density", "initial_density"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"sparsity.{name} {getattr(self, name)} is outside (0, 1]")
        if self.method == "chtss" and self.initial_density < self.density:
            raise InputError(
                f"sparsity.initial_density {self.initial_density} is below sparsity.density {self.density}: "
                "chtss starts denser than it ends"
            )

    @property
    def first_density(self) -> float:
        """Density of the initial graphs."""
        return self.initial_density if self.method == "chtss" else self.density


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"sparsity.{name} {value} is outside [{low}, {high}]")
