"""The recipe's `sparsity` block: how masks start, change and end.

A field left out (None) is as the method has it; see `methods.PRESETS`. `SparsityConfig.resolved` fills them in, and
says so all that will be done. In a group, a field left out is as in the block itself.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from ...artifacts import InputError
from ..topology.structure import Structure, StructureKind
from .methods import (
    PRESETS,
    Compute,
    Degrees,
    Distribution,
    FractionKind,
    Method,
    RegrowthRule,
    RegrowthScore,
    RemovalRule,
    RemovalScore,
    Schedule,
    TopologyKind,
)


@dataclass(frozen=True)
class TopologyConfig:
    """The initial graph of a layer.

    Args:
        kind: "brf" (bipartite receptive field), "bsw" (small world), "bsf" (scale free), "csti" (correlated inputs, for
            layers that see the data), "er" (uniformly random) or "magnitude" (the largest weights of a trained model).
        r: randomness of BRF, from 0 (nearest nodes) to 1 (any node); 0.25 where left out.
        degrees: degrees of BRF's smaller side: "fixed", also where left out, or "uniform".
        beta: share of BSW's links that are rewired; 0.25 where left out.
    """

    kind: TopologyKind | None = None
    r: float | None = None
    degrees: Degrees | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        _check_range("topology.r", self.r, 0, 1)
        _check_range("topology.beta", self.beta, 0, 1)

    def parameters(self) -> dict[str, float | str | None]:
        """The parameters that this kind of graph takes."""
        if self.kind == "brf":
            return {"r": self.r, "degrees": self.degrees}
        return {"beta": self.beta} if self.kind == "bsw" else {}


@dataclass(frozen=True)
class RegrowthConfig:
    """Which absent links come.

    Args:
        score: a link prediction score (CH2_L3n, CH3_L3n by nodes; CH2_L3p, CH3_L3p by paths), "gradient" (the largest
            dense gradient), "random", or "none" for no regrowth.
        rule: "soft" samples with probability proportional to score^temperature; "top" takes the highest.
        temperature: the exponent of the soft rule; above 1 sharpens it; 1 where left out.
    """

    score: RegrowthScore | None = None
    rule: RegrowthRule | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        _check_range("regrowth.temperature", self.temperature, 0, math.inf)


@dataclass(frozen=True)
class RemovalConfig:
    """Which links go.

    Args:
        score: "magnitude", "RI" (relative importance) or "MEST" (magnitude and 0.01 times the gradient).
        rule: "soft" keeps a sample with probability proportional to score^temperature; "hard" keeps the highest.
        temperature: the exponent of the soft rule at the first and at the last update, linear in between; 1 to 9 where
            left out.
        chains: also remove links that lead nowhere or come from nowhere; for all layers, not for groups.
    """

    score: RemovalScore | None = None
    rule: RemovalRule | None = None
    temperature: tuple[float, float] | None = None
    chains: bool | None = None

    def __post_init__(self) -> None:
        for value in self.temperature or ():
            _check_range("removal.temperature", value, 0, math.inf)


@dataclass(frozen=True)
class FractionConfig:
    """The share of links replaced in an update.

    Args:
        kind: "constant" throughout, or "cosine", falling from `initial` to 0 at the last update.
        initial: the share at the start.
    """

    kind: FractionKind | None = None
    initial: float | None = None

    def __post_init__(self) -> None:
        _check_range("fraction.initial", self.initial, 0, 1)


@dataclass(frozen=True)
class UpdateConfig:
    """When masks change.

    Args:
        every: optimizer steps between updates.
        stop: the last step at which there may be an update.
        warmup: steps over which learning rates rise to their schedule again after each update; 0 for none.
        early_stop: a layer's graph is left alone once this share of its regrown links had just been removed; 0 for
            never.
    """

    every: int = 100
    stop: int = 8000
    warmup: int = 0
    early_stop: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"sparsity.update.every must be at least 1, not {self.every}")
        if self.stop < self.every:
            raise InputError(f"sparsity.update.stop {self.stop} comes before the first update, at step {self.every}")
        if not 0 <= self.warmup <= self.every:
            raise InputError(f"sparsity.update.warmup {self.warmup} is outside [0, update.every = {self.every}]")
        _check_range("update.early_stop", self.early_stop, 0, 1)

    @property
    def count(self) -> int:
        """The number of updates."""
        return self.stop // self.every


@dataclass(frozen=True)
class GroupConfig:
    """Layers that differ from the rest. What is left out is as in the `sparsity` block.

    Args:
        layers: globs of layer names; each must match a sparse layer. A layer belongs to the first group that matches.
        density: final share of links.
        initial_density: share of links at the start, where the density falls.
        topology: the initial graph.
        removal: which links go.
        regrowth: which links come.
        fraction: how many are replaced in an update.
        structure: which masks are legal.
        block_size: of structure "block".
        per_head: update each head of query, key and value projections as a graph of its own.
    """

    layers: list[str]
    density: float | None = None
    initial_density: float | None = None
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    removal: RemovalConfig = field(default_factory=RemovalConfig)
    regrowth: RegrowthConfig = field(default_factory=RegrowthConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    structure: StructureKind | None = None
    block_size: int | None = None
    per_head: bool | None = None

    def __post_init__(self) -> None:
        _check_densities("sparsity.groups", self.density, self.initial_density)
        if self.removal.chains is not None:
            raise InputError("sparsity.groups: removal.chains is for all layers; set sparsity.removal.chains")


@dataclass(frozen=True)
class SparsityConfig:
    """Everything about the masks.

    Args:
        method: "dense" (no masks), "static" (the initial masks stay), "set", "rigl", "mest", "gmp", "granet", "cht",
            "chts" (fixed density) or "chtss" (density decays from `initial_density` to `density`).
        density: final share of links in the sparse layers, in (0, 1].
        initial_density: share of links at the start, where the schedule is not "constant".
        schedule: how the density falls.
        distribution: "uniform", the same density in all layers, or "erk", more in small layers, the same over all.
        topology: the initial graph.
        removal: which links go.
        regrowth: which links come.
        fraction: how many are replaced in an update.
        update: when.
        structure: "unstructured"; "2:4", at most 2 links in each aligned group of 4 inputs; or "block", whole blocks.
        block_size: side of the blocks of structure "block".
        per_head: update each head of query, key and value projections as a graph of its own.
        groups: layers with settings of their own.
        include: globs of the names of linear layers to make sparse.
        exclude: globs of names to leave dense.
        seed: fixes initial graphs and every random choice.
        compute: "masked", dense products of masked matrices; or "links", layers that hold and multiply their links
            alone, on one process: faster on CPUs below a density of some 10%.
    """

    method: Method = "chts"
    density: float = 0.3
    initial_density: float | None = None
    schedule: Schedule | None = None
    distribution: Distribution | None = None
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    removal: RemovalConfig = field(default_factory=RemovalConfig)
    regrowth: RegrowthConfig = field(default_factory=RegrowthConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    structure: StructureKind = "unstructured"
    block_size: int = 16
    per_head: bool = False
    groups: list[GroupConfig] = field(default_factory=list)
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=lambda: ["lm_head"])
    seed: int = 0
    compute: Compute = "masked"

    def __post_init__(self) -> None:
        if self.method not in PRESETS:
            raise InputError(f"sparsity.method '{self.method}' is none of {', '.join(PRESETS)}")
        _check_densities("sparsity", self.density, self.initial_density)
        self._check_initial_density("sparsity", self.initial_density, self.density)
        for group in self.groups:
            final = self.density if group.density is None else group.density
            self._check_initial_density("sparsity.groups", group.initial_density, final)
        Structure(self.structure, self.block_size)

    def _check_initial_density(self, where: str, initial: float | None, final: float) -> None:
        if initial is None or initial == final:
            return
        if not self.decays:
            raise InputError(
                f"{where}.initial_density {initial}: {self.method} keeps the density of {final} throughout; leave "
                "initial_density out, or choose a schedule that falls, as of chtss"
            )
        if initial < final:
            raise InputError(
                f"{where}.initial_density {initial} is below {where}.density {final}: {self.method} starts denser "
                "than it ends"
            )

    @property
    def decays(self) -> bool:
        """Whether the density falls."""
        return (self.schedule or PRESETS[self.method].schedule) != "constant"

    @property
    def changes(self) -> bool:
        """Whether there are topology updates."""
        return PRESETS[self.method].changes

    @property
    def first_density(self) -> float:
        """Density of the initial graphs."""
        if not self.decays:
            return self.density
        if self.initial_density is None:
            return max(PRESETS[self.method].initial_density, self.density)
        return self.initial_density

    def resolved(self) -> "SparsityConfig":
        """The same with every field that was left out filled in, as the method has it."""
        preset = PRESETS[self.method]
        topology = TopologyConfig(preset.topology, r=0.25, degrees="fixed", beta=0.25)
        removal = RemovalConfig(preset.removal_score, preset.removal_rule, (1.0, 9.0), preset.chains)
        regrowth = RegrowthConfig(preset.regrowth_score, preset.regrowth_rule, 1.0)
        early_stop = preset.early_stop if self.update.early_stop is None else self.update.early_stop
        return replace(
            self,
            initial_density=self.first_density,
            schedule=self.schedule or preset.schedule,
            distribution=self.distribution or preset.distribution,
            topology=merge(self.topology, topology),
            removal=merge(self.removal, removal),
            regrowth=merge(self.regrowth, regrowth),
            fraction=merge(self.fraction, FractionConfig(preset.fraction, preset.removed)),
            update=replace(self.update, early_stop=early_stop),
        )


Section = TypeVar("Section", TopologyConfig, RemovalConfig, RegrowthConfig, FractionConfig)
Value = TypeVar("Value")


def merge(chosen: Section, otherwise: Section) -> Section:
    """A section's fields, those left out taken from another."""
    given = {part.name: getattr(chosen, part.name) for part in fields(chosen)}
    return replace(otherwise, **{name: value for name, value in given.items() if value is not None})


def required(value: Value | None) -> Value:
    """A field that `SparsityConfig.resolved` has filled in."""
    assert value is not None
    return value


def _check_densities(where: str, *densities: float | None) -> None:
    for name, density in zip(("density", "initial_density"), densities, strict=True):
        if density is not None and not 0 < density <= 1:
            raise InputError(f"{where}.{name} {density} is outside (0, 1]")


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"sparsity.{name} {value} is outside [{low}, {high}]")
