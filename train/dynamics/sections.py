"""The sections of the recipe's `sparsity` block: graph, removal, regrowth, fraction, updates, and groups of layers.

A field left out (None) is as the method has it, or, in a group, as the block has it. Where a section is expected, a
mapping of its fields will do, as recipes write it.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

from ...artifacts import InputError
from ..topology.structure import StructureKind
from .methods import (
    Degrees,
    FractionKind,
    RegrowthRule,
    RegrowthScore,
    RemovalRule,
    RemovalScore,
    TopologyKind,
)


@dataclass(frozen=True)
class TopologyConfig:
    """The initial graph of a layer.

    Args:
        kind: "brf" (bipartite receptive field), "bsw" (small world), "bsf" (scale free), "csti" (correlated inputs, for
            layers that see the data), "er" (uniformly random) or "magnitude" (the largest weights of a trained model,
            and so all of them that are not zero, where there are no more than links) or "nonzero" (the weights that
            are not zero, as pruning left them: each layer keeps its number, whatever the density says). Where left out,
            it is the method's for fresh weights, and "magnitude" for weights that were loaded or hold zeros.
        r: randomness of BRF, from 0 (nearest nodes) to 1 (any node); 0.25 where left out.
        degrees: degrees of BRF's smaller side: "fixed", also where left out, or "uniform".
        beta: share of BSW's links that are rewired; 0.25 where left out.
    """

    kind: TopologyKind | None = None
    r: float | None = None
    degrees: Degrees | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        check_choice("topology.kind", self.kind, TopologyKind)
        check_choice("topology.degrees", self.degrees, Degrees)
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
        check_choice("regrowth.score", self.score, RegrowthScore)
        check_choice("regrowth.rule", self.rule, RegrowthRule)
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
        check_choice("removal.score", self.score, RemovalScore)
        check_choice("removal.rule", self.rule, RemovalRule)
        if self.temperature is None:
            return
        if not isinstance(self.temperature, list | tuple) or len(self.temperature) != 2:
            raise InputError(f"sparsity.removal.temperature must be [first, last], not {self.temperature!r}")
        for value in self.temperature:
            _check_range("removal.temperature", value, 0, math.inf)
        object.__setattr__(self, "temperature", tuple(self.temperature))

    @property
    def anneals(self) -> bool:
        """Whether the rule changes from the first update to the last; of a section whose fields are filled in."""
        return self.rule == "soft" and self.temperature is not None and len(set(self.temperature)) > 1


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
        check_choice("fraction.kind", self.kind, FractionKind)
        _check_range("fraction.initial", self.initial, 0, 1)

    @property
    def anneals(self) -> bool:
        """Whether the share changes from the first update to the last; of a section whose fields are filled in."""
        return self.kind == "cosine" and bool(self.initial)


@dataclass(frozen=True)
class UpdateConfig:
    """When masks change.

    Args:
        every: optimizer steps between updates.
        stop: the last step at which there may be an update. Where left out, updates take place in the first three
            quarters of a recipe's or a Trainer's steps; see `SparsityConfig.for_run`.
        warmup: steps over which learning rates rise to their schedule again after each update; 0 for none.
        early_stop: a layer's graph is left alone once this share of its regrown links had just been removed; 0 for
            never.
    """

    every: int = 100
    stop: int | None = None
    warmup: int = 0
    early_stop: float | None = None

    def __post_init__(self) -> None:
        for name in ("every", "stop", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and not (name == "stop" and value is None):
                raise InputError(f"sparsity.update.{name} must be a whole number of steps, not {value!r}")
        if self.every < 1:
            raise InputError(f"sparsity.update.every must be at least 1, not {self.every}")
        if self.stop is not None and self.stop < self.every:
            raise InputError(f"sparsity.update.stop {self.stop} comes before the first update, at step {self.every}")
        if not 0 <= self.warmup <= self.every:
            raise InputError(f"sparsity.update.warmup {self.warmup} is outside [0, update.every = {self.every}]")
        _check_range("update.early_stop", self.early_stop, 0, 1)

    @property
    def count(self) -> int:
        """The number of updates; `stop` is filled in."""
        return required(self.stop) // self.every

    @property
    def last(self) -> int:
        """The step of the last update; `stop` is filled in."""
        return self.count * self.every


@dataclass(frozen=True)
class NewLinksConfig:
    """What optimizers keep of links that an update grows.

    Args:
        own_steps: Adam's bias correction counts the steps of each link from when it grew (arXiv 2606.00888); recipes
            then train by `hebbline.train.LinkAdamW` in place of AdamW, as loops of one's own must.
        young_steps: in its t-th step a link moves by min(t / young_steps, 1) of Adam's step; 0 for all of it. Needs
            `own_steps`.
        keep: a link that is removed and grown again in one update keeps its weight and moments; without it, it starts
            at 0.
    """

    own_steps: bool = False
    young_steps: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.young_steps, Integral) or self.young_steps < 0:
            raise InputError(
                f"sparsity.new_links.young_steps must be a whole number of steps from 0, not {self.young_steps!r}"
            )
        if self.young_steps and not self.own_steps:
            raise InputError("sparsity.new_links.young_steps counts the steps of each link: set own_steps to true")


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
        build_sections(self, "sparsity.groups", GRAPH_SECTIONS)
        check_globs("sparsity.groups.layers", self.layers)
        check_densities("sparsity.groups", self.density, self.initial_density)
        check_choice("groups.structure", self.structure, StructureKind)
        if self.removal.chains is not None:
            raise InputError("sparsity.groups: removal.chains is for all layers; set sparsity.removal.chains")


GRAPH_SECTIONS: dict[str, type] = {
    "topology": TopologyConfig,
    "removal": RemovalConfig,
    "regrowth": RegrowthConfig,
    "fraction": FractionConfig,
}
Section = TypeVar("Section", TopologyConfig, RemovalConfig, RegrowthConfig, FractionConfig)
Value = TypeVar("Value")


def merge(chosen: Section, otherwise: Section) -> Section:
    """A section's fields, those left out taken from another."""
    given = {part.name: getattr(chosen, part.name) for part in fields(chosen)}
    return replace(otherwise, **{name: value for name, value in given.items() if value is not None})


def required(value: Value | None) -> Value:
    """A field that `SparsityConfig.resolved` or `for_run` has filled in."""
    assert value is not None
    return value


def build_sections(owner: Any, where: str, kinds: Mapping[str, type]) -> None:
    """Put dataclasses in the place of the sections of a frozen dataclass that were given as mappings."""
    for name, kind in kinds.items():
        object.__setattr__(owner, name, build_section(f"{where}.{name}", kind, getattr(owner, name)))


def build_section(where: str, kind: type[Value], value: Any) -> Value:
    """A section, which may be given as a mapping of its fields.

    Raises:
        InputError: it is neither, has a field that the section does not have, or lacks one that must be given; `where`
            names it.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping of fields or a {kind.__name__}, not {value!r}")
    parts = fields(kind)  # type: ignore[arg-type]
    names = [part.name for part in parts]
    if unknown := [name for name in value if name not in names]:
        raise InputError(f"there is no field '{where}.{unknown[0]}'; the fields are {', '.join(names)}")
    needed = [part.name for part in parts if part.default is MISSING and part.default_factory is MISSING]
    if missing := [name for name in needed if name not in value]:
        raise InputError(f"{where} lacks the field '{missing[0]}'")
    return kind(**value)


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of a Literal's, with their names; None is a field left out."""
    if value is not None and value not in get_args(choices):
        raise InputError(f"sparsity.{name} '{value}' is none of {', '.join(get_args(choices))}")


def check_globs(where: str, globs: object) -> None:
    """Refuse what is no list of names: a lone string would be taken for a list of its letters."""
    if not isinstance(globs, list | tuple) or not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"{where} must be a list of globs such as ['*.mlp.*'], not {globs!r}")


def check_densities(where: str, *densities: Any) -> None:
    """Refuse a final or an initial density outside (0, 1]."""
    for name, density in zip(("density", "initial_density"), densities, strict=True):
        if density is not None:
            check_share(f"{where}.{name}", density)


def check_share(where: str, value: Any) -> None:
    """Refuse a share outside (0, 1]."""
    if not (_is_number(value) and 0 < value <= 1):
        raise InputError(f"{where} {value} is outside (0, 1]")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is not None and not (_is_number(value) and low <= value <= high):
        raise InputError(f"sparsity.{name} {value} is outside [{low}, {high}]")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
