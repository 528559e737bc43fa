"""What is to be done to each layer, from the configuration and the model: every choice made, every layer checked.

Legend: N out_features, K in_features; R, C rows and columns of the grid of units (see `topology.structure`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...architectures import decoder_of
from ...artifacts import InputError
from ..topology import initial_mask
from ..topology.initial import link_count
from ..topology.structure import Structure
from .config import SparsityConfig
from .density import density_schedule, erk_densities
from .layers import check_weights, is_trained
from .methods import FractionKind, RegrowthRule, RegrowthScore, RemovalRule, RemovalScore, TopologyKind
from .places import Place, check_experts, find_places, output_layers, tied_layers
from .sampling import seed_for
from .sections import GroupConfig, merge, required
from .sharding import whole


@dataclass(frozen=True)
class LayerPlan:
    """One layer's settings. `densities` holds its target at updates 0 .. count; `parts` is its number of graphs."""

    name: str
    shape: tuple[int, int]
    parts: int
    structure: Structure
    densities: tuple[float, ...]
    topology: TopologyKind
    topology_parameters: dict[str, float | str | None]
    removal_score: RemovalScore
    removal_rule: RemovalRule
    removal_temperature: tuple[float, float]
    regrowth_score: RegrowthScore
    regrowth_rule: RegrowthRule
    regrowth_temperature: float
    fraction: FractionKind
    removed: float

    def initial_mask(self, seed: int, inputs: ArrayLike | None = None) -> Tensor:
        """The layer's first graph, bool [N, K]; `inputs` are the data's, for "csti" only."""
        out_features, in_features = self.shape
        parameters: dict[str, Any] = {"inputs": inputs} if self.topology == "csti" else self.topology_parameters
        return initial_mask(
            self.topology,
            out_features,
            in_features,
            self.densities[0],
            seed=seed_for(seed, self.name, "initial"),
            structure=self.structure,
            **parameters,
        )

    def temperature_at(self, progress: float) -> float:
        """The exponent of soft removal at `progress` in [0, 1] of the updates."""
        first, last = self.removal_temperature
        return first + (last - first) * progress

    def links(self, update: int) -> int:
        """The number of links that the layer must have after an update."""
        return sum(self.units(update)) * self.structure.side**2

    def units(self, update: int) -> list[int]:
        """The number of units of each part after an update: together those of the layer's density."""
        rows, columns = self.structure.grid(*self.shape)
        total = link_count(rows, columns, self.densities[update])
        ends = [round(total * part / self.parts) for part in range(self.parts + 1)]
        return [end - start for start, end in pairwise(ends)]

    @property
    def uses_gradient(self) -> bool:
        """Whether updates need the dense gradient."""
        return self.regrowth_score == "gradient" or self.removal_score == "MEST"


def plan_layers(model: nn.Module, config: SparsityConfig) -> dict[str, LayerPlan]:
    """The plans of a model's sparse layers, in the model's order; none for method "dense".

    Raises:
        InputError: globs that match no layer, a layer whose weight is frozen, computed from others, or another layer's
            too, a structure that a layer's shape or density does not admit, or a last update that is not known.
    """
    asked = config.topology.kind
    config = config.resolved().for_run()
    layers = sparse_places(model, config)
    check_weights(model, layers)
    groups = {name: _group_of(name, config.groups) for name in layers}
    _check_globs(config.groups, list(layers))
    heads = head_counts(model)
    structures = {name: _structure(config, groups[name]) for name in layers}
    densities = _densities(config, {name: place.shape for name, place in layers.items()}, groups, structures)
    plans = {}
    for name, place in layers.items():
        per_head = config.per_head if groups[name].per_head is None else groups[name].per_head
        parts = heads.get(name, 1) if per_head else 1
        plan = _plan(name, place.shape, config, groups[name], structures[name], densities[name], parts)
        if not (groups[name].topology.kind or asked) and is_trained(model.get_parameter(place.parameter)):
            plan = replace(plan, topology="magnitude")
        if plan.topology == "nonzero":
            plan = _of_nonzero(plan, place.matrix(whole(model.get_parameter(place.parameter).detach())), config)
        plan.structure.check(name, *plan.shape, max(plan.densities))
        if plan.regrowth_score == "none" and (plan.removed or config.removal.chains):
            raise InputError(
                "sparsity.regrowth.score 'none' would lose links: set fraction.initial to 0 and removal.chains to false"
            )
        if plan.structure.grid(*plan.shape)[0] % parts:
            raise InputError(f"sparsity.per_head: the heads of layer '{name}' are not whole blocks of rows")
        plans[name] = plan
    return plans


def sparse_places(model: nn.Module, config: SparsityConfig) -> dict[str, Place]:
    """The matrices of the layers that an include glob matches and no exclude glob does, in the model's order.

    Layers that share their weight with an embedding stay dense, and so does that of the outputs, by what it is, unless
    `include` has its very name.

    Raises:
        InputError: there are none, `include` names a layer that shares its weight with an embedding, or experts of a
            mixture would stay dense without being excluded.
    """
    if config.method == "dense":
        return {}
    found = find_places(model)
    tied = tied_layers(model)
    if named := sorted(tied & set(config.include)):
        raise InputError(
            f"layer '{named[0]}' shares its weight with an embedding, of which most would become 0 too: take it out of "
            "sparsity.include"
        )
    outputs = tied | (output_layers(model) - set(config.include))
    chosen = {
        name: place
        for name, place in found.items()
        if name not in outputs and _matches(name, config.include) and not _matches(name, config.exclude)
    }
    if not chosen:
        raise InputError(f"sparsity.include {config.include} matches no linear layer of {type(model).__name__}")
    check_experts(model, found, lambda name: not _matches(name, config.include) or _matches(name, config.exclude))
    return chosen


def head_counts(model: nn.Module) -> dict[str, int]:
    """The number of heads of each query, key and value projection, by layer name."""
    counts = {}
    if (decoder := decoder_of(model)) is not None:
        size, places = decoder.attention.head_size, find_places(model)
        names = [f"{layer}.{path}" for layer in decoder.layer_paths() for path in decoder.attention.inputs]
        return {name: places[name].shape[0] // size for name in names if name in places}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "head_dim", None), int):
            for part in ("q_proj", "k_proj", "v_proj"):
                if isinstance(projection := getattr(module, part, None), nn.Linear):
                    counts[f"{name}.{part}"] = projection.out_features // module.head_dim
    return counts


def _plan(
    name: str,
    shape: tuple[int, int],
    config: SparsityConfig,
    group: GroupConfig,
    structure: Structure,
    densities: list[float],
    parts: int,
) -> LayerPlan:
    topology = merge(group.topology, config.topology)
    removal = merge(group.removal, config.removal)
    regrowth = merge(group.regrowth, config.regrowth)
    fraction = merge(group.fraction, config.fraction)
    return LayerPlan(
        name=name,
        shape=shape,
        parts=parts,
        structure=structure,
        densities=tuple(densities),
        topology=required(topology.kind),
        topology_parameters=topology.parameters(),
        removal_score=required(removal.score),
        removal_rule=required(removal.rule),
        removal_temperature=required(removal.temperature),
        regrowth_score=required(regrowth.score),
        regrowth_rule=required(regrowth.rule),
        regrowth_temperature=required(regrowth.temperature),
        fraction=required(fraction.kind),
        removed=required(fraction.initial),
    )


def _of_nonzero(plan: LayerPlan, weight_NK: Tensor, config: SparsityConfig) -> LayerPlan:
    """The plan of a layer whose graph is that of its weights: it keeps their number."""
    if config.decays:
        raise InputError(
            f"topology 'nonzero' keeps the number of links that layer '{plan.name}' has, and {config.method} lowers "
            "it: give topology.kind 'magnitude', or a method whose density stays"
        )
    links = int(weight_NK.count_nonzero())
    if not links or not plan.structure.is_legal(weight_NK != 0):
        wrong = "are all 0" if not links else f"are not of sparsity.structure '{plan.structure.kind}'"
        raise InputError(f"topology 'nonzero': the weights of layer '{plan.name}' {wrong}")
    return replace(plan, densities=(links / weight_NK.numel(),) * len(plan.densities))


def _densities(
    config: SparsityConfig,
    shapes: Mapping[str, tuple[int, int]],
    groups: Mapping[str, GroupConfig],
    structures: Mapping[str, Structure],
) -> dict[str, list[float]]:
    """The schedule of each layer. Layers whose group has a density keep to it; the others share by the distribution."""
    common = _schedule(config, config.first_density, config.density)
    found = {}
    for name, group in groups.items():
        final = config.density if group.density is None else group.density
        first = group.initial_density or max(config.first_density, final)
        found[name] = _schedule(config, first, final) if group.density or group.initial_density else common
    shared = {name: shapes[name] for name in found if found[name] is common}
    if config.distribution == "erk" and shared:
        limits = {name: structures[name].max_density for name in shared}
        by_update = [erk_densities(shared, density, limits) for density in common]
        found |= {name: [densities[name] for densities in by_update] for name in shared}
    return found


def _schedule(config: SparsityConfig, first: float, final: float) -> list[float]:
    return density_schedule(required(config.schedule), first, final, config.update.count, config.decay_share)


def _structure(config: SparsityConfig, group: GroupConfig) -> Structure:
    return Structure(group.structure or config.structure, group.block_size or config.block_size)


def _group_of(name: str, groups: list[GroupConfig]) -> GroupConfig:
    """The first group that a layer belongs to, or one that changes nothing."""
    return next((group for group in groups if _matches(name, group.layers)), GroupConfig([]))


def _check_globs(groups: list[GroupConfig], names: list[str]) -> None:
    for number, group in enumerate(groups):
        for glob in group.layers:
            if names and not any(fnmatchcase(name, glob) for name in names):
                raise InputError(f"sparsity.groups[{number}].layers: '{glob}' matches no sparse layer")


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
