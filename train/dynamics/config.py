"""The recipe's `sparsity` block: how masks start, change and end.

A field left out (None) is as the method has it; see `methods.PRESETS`. `SparsityConfig.resolved` fills them in, and
says so all that will be done, but for the last update's step, which depends on the run: see `SparsityConfig.for_run`.
"""

from dataclasses import dataclass, field, replace

from ...artifacts import InputError
from ..topology.structure import Structure, StructureKind
from .density import density_schedule
from .methods import PRESETS, Compute, Distribution, Method, Schedule
from .sections import (
    GRAPH_SECTIONS,
    FractionConfig,
    GroupConfig,
    NewLinksConfig,
    RegrowthConfig,
    RemovalConfig,
    TopologyConfig,
    UpdateConfig,
    build_section,
    build_sections,
    check_choice,
    check_densities,
    check_globs,
    check_share,
    merge,
    required,
)

__all__ = [
    "FractionConfig",
    "GroupConfig",
    "NewLinksConfig",
    "RegrowthConfig",
    "RemovalConfig",
    "SparsityConfig",
    "TopologyConfig",
    "UpdateConfig",
]

LAST_UPDATE_SHARE = (3, 4)
"""Of a run's steps, those in which there are updates where `update.stop` is left out."""
OPEN_END = 8000
"""`update.stop` where neither it nor the steps of a run are known, for a density that is the same throughout."""


@dataclass(frozen=True)
class SparsityConfig:
    """Everything about the masks.

    Args:
        method: "dense" (no masks), "static" (the initial masks stay), "set", "rigl", "mest", "gmp", "granet", "cht",
            "chts" (fixed density) or "chtss" (density decays from `initial_density` to `density`).
        density: final share of links in the sparse layers, in (0, 1].
        initial_density: share of links at the start, where the schedule is not "constant".
        schedule: how the density falls.
        decay_share: of the updates, the share over which it falls, in (0, 1]; in the others it stays.
        distribution: "uniform", the same density in all layers, or "erk", more in small layers, the same over all.
        topology: the initial graph.
        removal: which links go.
        regrowth: which links come.
        fraction: how many are replaced in an update.
        update: when.
        new_links: what optimizers keep of links that grow.
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
    decay_share: float = 1.0
    distribution: Distribution | None = None
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    removal: RemovalConfig = field(default_factory=RemovalConfig)
    regrowth: RegrowthConfig = field(default_factory=RegrowthConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    new_links: NewLinksConfig = field(default_factory=NewLinksConfig)
    structure: StructureKind = "unstructured"
    block_size: int = 16
    per_head: bool = False
    groups: list[GroupConfig] = field(default_factory=list)
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=lambda: ["lm_head"])
    seed: int = 0
    compute: Compute = "masked"

    def __post_init__(self) -> None:
        self._build()
        for name, choices in (("method", Method), ("schedule", Schedule), ("distribution", Distribution)):
            check_choice(name, getattr(self, name), choices)
        check_choice("structure", self.structure, StructureKind)
        check_choice("compute", self.compute, Compute)
        for name in ("include", "exclude"):
            check_globs(f"sparsity.{name}", getattr(self, name))
        check_densities("sparsity", self.density, self.initial_density)
        check_share("sparsity.decay_share", self.decay_share)
        self._check_initial_density("sparsity", self.initial_density, self.density)
        for group in self.groups:
            final = self.density if group.density is None else group.density
            self._check_initial_density("sparsity.groups", group.initial_density, final)
        if self.decays and self.method == "static":
            raise InputError(f"sparsity.schedule '{self.schedule}': static keeps its links, and so its density")
        Structure(self.structure, self.block_size)

    def _build(self) -> None:
        """Sections and groups, where they were given as mappings."""
        build_sections(self, "sparsity", GRAPH_SECTIONS | {"update": UpdateConfig, "new_links": NewLinksConfig})
        if not isinstance(self.groups, list | tuple):
            raise InputError(f"sparsity.groups must be a list of groups, not {self.groups!r}")
        groups = [build_section(f"sparsity.groups[{i}]", GroupConfig, group) for i, group in enumerate(self.groups)]
        object.__setattr__(self, "groups", groups)

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

    def over_trained_weights(self) -> "SparsityConfig":
        """The same for a model that was trained: its largest weights stay, unless another graph is asked for."""
        return replace(self, topology=merge(self.topology, TopologyConfig("magnitude")))

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

    def for_run(self, steps: int | None = None) -> "SparsityConfig":
        """The same for a run of so many optimizer steps, with `update.stop` filled in.

        Left out, it is the last update in the first three quarters of the run. Where the steps are not known (None), it
        is step 8000, and must be given for a density that falls.

        Raises:
            InputError: the run would end otherwise than it was asked to: with links still to be removed, with a cosine
                or a temperature on its way, without any update, or, its steps not known, at a density that depends on
                them.
        """
        every = self.update.every
        if not self.changes:
            return self._stopping_at(self.update.stop or every)
        if steps is None:
            return self._without_steps()
        if steps < every:
            raise InputError(
                f"sparsity.update.every {every} is past the last step, {steps}: {self.method} would not update its "
                "graphs once; give fewer steps between updates, or method 'static'"
            )
        if self.update.stop is None:
            share, whole = LAST_UPDATE_SHARE
            return self._stopping_at(max(every, steps * share // whole // every * every))
        self._check_end(steps)
        return self

    def _without_steps(self) -> "SparsityConfig":
        if self.update.stop is None and self.decays:
            raise InputError(
                f"sparsity.update.stop is left out, and {self.method} lowers the density until then: give the step of "
                "the last update, which the loop must reach"
            )
        return self._stopping_at(self.update.stop or max(self.update.every, OPEN_END))

    def _stopping_at(self, stop: int) -> "SparsityConfig":
        return replace(self, update=replace(self.update, stop=stop))

    def _check_end(self, steps: int) -> None:
        """Refuse a last update that comes after the last step, where anything depends on it."""
        last = self.update.last
        if last <= steps or not (self.decays or self._anneals):
            return
        missed = "its fraction or temperature would not come to its end"
        if self.decays:
            schedule = self.resolved().schedule
            densities = (self.first_density, self.density)
            reached = density_schedule(required(schedule), *densities, self.update.count, self.decay_share)
            if (end := reached[steps // self.update.every]) > self.density:
                missed = f"the density would end at {end:.3g}, not {self.density:g}"
        raise InputError(
            f"sparsity.update.stop {self.update.stop} is past the last step, {steps}: {missed}; leave update.stop out "
            f"(null) for the first three quarters, or give at most {steps}"
        )

    @property
    def _anneals(self) -> bool:
        """Whether removal changes from the first update to the last, in any layer."""
        whole = self.resolved()
        groups = [GroupConfig([]), *self.groups]
        return any(
            merge(group.fraction, whole.fraction).anneals or merge(group.removal, whole.removal).anneals
            for group in groups
        )
