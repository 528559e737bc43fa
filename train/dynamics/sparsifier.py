"""Keeps linear layers sparse while any optimizer trains them, and updates their graphs.

Legend: N out_features, K in_features.

After every optimizer step weights, gradients and optimizer moments off the mask are exactly 0, and each layer has
exactly the number of links that its density asks for. An update comes after the optimizer step it is due at, not
instead of it. How the weights are held, `SparsityConfig.compute` says; see `weights`.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ...artifacts import CheckError, InputError
from ..link_adamw import LinkAdamW
from .chains import model_chains, remove_chains
from .config import SparsityConfig
from .density import removal_fraction
from .places import dense_weights, density_line, find_places
from .plan import LayerPlan, plan_layers
from .promise import Promise, promise
from .sections import required
from .sharding import check_masks, decides, local, local_rows, share_masks, whole
from .update import Moment, UpdateReport, magnitude_mask, regrow, remove
from .warmup import RateWarmup
from .weights import LinkWeights, MaskedWeights, Masks, Weights


class Sparsifier:
    """Masks on a model's linear layers, and their dynamics.

        sparsifier = Sparsifier(model, SparsityConfig(density=0.3))
        sparsifier.attach(optimizer)
        for batch in data:
            loss(model, batch).backward()
            optimizer.step()
            sparsifier.step()

    With `compute="links"` the model's layers are replaced; `densify` puts dense ones back, to save it. A method that
    lowers the density must know `update.stop`, and comes to it if the loop does; see `save_model_directory`.

    Raises:
        InputError: globs that match no layer, a layer that is frozen, computes its weight or shares it with another, a
            structure that a layer does not admit, a falling density without `update.stop`, or `compute="links"` on
            several processes or for a layer whose weight is shared with any module.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SparsityConfig,
        state: Mapping[str, Any] | None = None,
        *,
        inputs: ArrayLike | None = None,
    ) -> None:
        """Put the initial graphs on the model, or, where a `state_dict()` is given, go on with its masks.

        Layers whose weights were loaded by transformers, or hold zeros, keep their largest weights, unless
        `topology.kind` names another initial graph.

        Args:
            model: not yet wrapped for DDP; after it was split, for FSDP2.
            config: its settings; `self.config` has them resolved.
            state: of an earlier `state_dict()`.
            inputs: float [samples, features], the data, for initial graphs of kind "csti".
        """
        self.plans = plan_layers(model, config)
        self.config = config = config.resolved().for_run()
        places = find_places(model)
        self._devices = {name: model.get_parameter(places[name].parameter).device for name in self.plans}
        self.dense = dense_weights(model, {name: places[name] for name in self.plans})
        self._chains = model_chains(model, list(self.plans)) if config.removal.chains else []
        self._warmup = RateWarmup(config.update.warmup, self._steps_since_update)
        if state is None:
            masks = _initial_masks(model, self.plans, config.seed, inputs)
            state = {"steps": 0, "masks": masks}
        masks = self._take_over(state)
        check_masks(masks)
        kind = LinkWeights if config.compute == "links" else MaskedWeights
        self.weights: Weights = kind(model, masks, self._is_watched)
        self._is_attached = False
        promise(model, self._promise() if config.changes and config.decays else None)

    def attach(self, optimizer: Optimizer) -> None:
        """Keep this optimizer's parameters and moments zero off the masks, from now on; again, it changes nothing."""
        # accelerate wraps optimizers; the hooks must sit on the one that steps.
        inner = getattr(optimizer, "optimizer", optimizer)
        if not self.weights.is_attached(inner):
            self.weights.attach(inner)
            self._warmup.attach(inner)

    def step(self) -> UpdateReport | None:
        """Count one optimizer step; update the graphs where one is due, and then say what was done.

        Raises:
            InputError: in the first step, where no attached optimizer trains one of the layers, or, with
                `new_links.own_steps`, one that does not count the steps of each link.
            CheckError: a layer whose gradient an update looks at has none.
        """
        if not self._is_attached:
            self._check_attached()
        self.steps += 1
        return self._update() if self._due(self.steps) else None

    def densify(self) -> None:
        """Leave dense layers with explicit zeros in the model; training ends with that."""
        self.weights.densify()

    @property
    def masks(self) -> Masks:
        """The graphs: bool [N, K] by layer, on the layer's device, whole on every process."""
        return self.weights.masks

    @property
    def density(self) -> float:
        """Links over possible links, of all sparse layers together; `summary` says which those are."""
        return _share(self.masks)

    @property
    def summary(self) -> str:
        """A line that says of what the density is, and which weights stay dense (`dense`: their number, by name)."""
        return density_line(self.masks, self.dense)

    @torch.no_grad()
    def mask(self, averaged: nn.Module) -> None:
        """Set weights off the masks to 0 in another model of the same layers, in place.

        A moving or stochastic average of the weights (EMA, SWA) holds links that were there at some time: call this
        before it is evaluated or published.

        Args:
            averaged: the averaged model, or torch's `AveragedModel` around it.

        Raises:
            InputError: it lacks a layer, or has it in another shape.
        """
        inner = averaged.module if isinstance(averaged, AveragedModel) else averaged
        places = find_places(inner)
        for name, mask_NK in self.masks.items():
            if name not in places or places[name].shape != mask_NK.shape:
                raise InputError(f"the model to be masked has no layer '{name}' of shape {tuple(mask_NK.shape)}")
            region = places[name].region(local(inner.get_parameter(places[name].parameter)))
            region.masked_fill_(~places[name].held(local_rows(mask_NK.to(region.device), region), region), 0)

    def state_dict(self) -> dict[str, Any]:
        """All that the dynamics depend on, beside the configuration.

        `steps`; `masks`; `ever`, the links that ever were; `grown`, those of the last update; and `stopped`, the layers
        whose graph is left alone.
        """
        links = {"masks": self.masks, "ever": self.ever, "grown": self._grown}
        copies = {part: {name: mask_NK.clone() for name, mask_NK in masks.items()} for part, masks in links.items()}
        return {"steps": self.steps, "stopped": sorted(self.stopped), **copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; raises InputError where its layers or shapes are not those of this model.

        A state of `steps` and `masks` alone is one whose links were there from the start.
        """
        masks = self._take_over(state)
        check_masks(masks)
        self.weights.put(masks)

    def _check_attached(self) -> None:
        """Refuse to count steps whose optimizer would move weights off the masks, or the links not at all."""
        if missing := self.weights.untrained():
            raise InputError(
                f"no attached optimizer holds the weight of layer '{missing[0]}': call Sparsifier.attach(optimizer) "
                "with the optimizer that trains it, before the first step()"
            )
        if self.config.new_links.own_steps and (other := self.weights.trained_by_others(LinkAdamW)):
            raise InputError(
                f"sparsity.new_links.own_steps: layer '{other[0]}' is trained by another optimizer than "
                "hebbline.train.LinkAdamW, which counts the steps of each link"
            )
        self._is_attached = True

    def _promise(self) -> Promise:
        update = self.config.update
        return Promise({name: plan.links(update.count) for name, plan in self.plans.items()}, update.last)

    def _take_over(self, state: Mapping[str, Any]) -> Masks:
        """Everything of a state but its masks, which are returned."""
        masks = self._checked(state["masks"])
        self.ever = self._checked(state.get("ever", state["masks"]))
        self._grown = self._checked(state["grown"]) if state.get("grown") else _empty(masks)
        self.steps: int = state["steps"]
        self.stopped = set(state.get("stopped", ()))
        return masks

    def _checked(self, masks: Masks) -> Masks:
        """Copies on the layers' devices."""
        shapes = {name: torch.Size(plan.shape) for name, plan in self.plans.items()}
        if {name: mask_NK.shape for name, mask_NK in masks.items()} != shapes:
            raise InputError("the sparsity state is of another model: its layers or shapes differ")
        return {name: masks[name].to(device, torch.bool, copy=True) for name, device in self._devices.items()}

    def _due(self, step: int) -> bool:
        update = self.config.update
        return self.config.changes and step % update.every == 0 and step <= required(update.stop)

    def _steps_since_update(self) -> int | None:
        """Steps taken since the last update; None where there was none."""
        update = self.config.update
        last = min(self.steps, required(update.stop)) // update.every * update.every
        return self.steps - last if self.config.changes and last else None

    def _is_watched(self, name: str) -> bool:
        """Whether the gradient of a layer in the step that is on its way is needed whole."""
        return self.plans[name].uses_gradient and self._due(self.steps + 1)

    @torch.no_grad()
    def _update(self) -> UpdateReport:
        """One topology update: density, removal, chains, regrowth (arXiv 2501.19107).

        All processes gather weights and gradients; the first one chooses, and the others take over its masks.
        """
        started = time.perf_counter()
        when = Moment(self.steps // self.config.update.every, self.steps / required(self.config.update.stop))
        gradients = self._gather_gradients()
        weights = {name: self.weights.dense(name) for name in self.plans}
        before = self.masks
        kept, after = self._choose(weights, gradients, when) if decides() else (_empty(before), _empty(before))
        share_masks(kept)
        share_masks(after)
        lasting = after if self.config.new_links.keep else kept
        self.weights.rewire(after, {name: before[name] & lasting[name] for name in self.plans})
        return self._report(before, kept, when, started)

    def _gather_gradients(self) -> dict[str, Tensor]:
        needed = [name for name, plan in self.plans.items() if plan.uses_gradient]
        found = self.weights.take_gradients(needed)
        if missing := [name for name in needed if name not in found]:
            raise CheckError(f"layer '{missing[0]}' had no gradient in the step before the update, which looks at it")
        return found

    def _choose(self, weights: Masks, gradients: Masks, when: Moment) -> tuple[Masks, Masks]:
        """The links that stay, and with those that come."""
        seed = self.config.seed
        kept = {
            name: remove(
                plan, self.masks[name], weights[name], gradients.get(name), when, seed, stopped=name in self.stopped
            )
            for name, plan in self.plans.items()
        }
        if remove_chains(kept, self._chains):
            # A block goes once all of its links are dead.
            kept = {
                name: plan.structure.unfold(plan.structure.fold_mask(kept[name])) for name, plan in self.plans.items()
            }
        return kept, {
            name: regrow(plan, kept[name], gradients.get(name), when, seed) for name, plan in self.plans.items()
        }

    def _report(self, before: Masks, kept: Masks, when: Moment, started: float) -> UpdateReport:
        """Count what changed, and stop the layers that only regrow what was removed."""
        removed = {name: before[name] & ~kept[name] for name in kept}
        grown = {name: self.masks[name] & ~kept[name] for name in kept}
        again = {name: removed[name] & grown[name] for name in kept}
        survived = _count({name: self._grown[name] & kept[name] for name in kept}) / max(1, _count(self._grown))
        for name in kept:
            self.ever[name] |= self.masks[name]
            self._stop_early(name, int(again[name].sum()), int(grown[name].sum()))
        self._grown = grown
        fraction = self.config.fraction
        return UpdateReport(
            step=self.steps,
            update=when.update,
            density=self.density,
            fraction=removal_fraction(required(fraction.kind), required(fraction.initial), when.progress),
            removed=_count(removed),
            regrown=_count(grown),
            seconds=time.perf_counter() - started,
            overlap=_count(again) / max(1, _count(grown)),
            survived=survived,
            itop=_share(self.ever),
            active_outputs=_mean_active(self.masks, 1),
            active_inputs=_mean_active(self.masks, 0),
            stopped=len(self.stopped),
        )

    def _stop_early(self, name: str, again: int, grown: int) -> None:
        threshold = required(self.config.update.early_stop)
        if threshold and grown and again >= threshold * grown:
            self.stopped.add(name)


@torch.no_grad()
def initial_masks(model: nn.Module, config: SparsityConfig, inputs: ArrayLike | None = None) -> Masks:
    """The graphs that the training of a model begins with, bool [N, K] by layer; see `Sparsifier`."""
    return _initial_masks(model, plan_layers(model, config), config.seed, inputs)


def _initial_masks(model: nn.Module, plans: Mapping[str, LayerPlan], seed: int, inputs: ArrayLike | None) -> Masks:
    masks, places = {}, find_places(model)
    for name, plan in plans.items():
        weight = model.get_parameter(places[name].parameter)
        if plan.topology == "csti" and inputs is None:
            raise InputError(f"topology 'csti' of layer '{name}' needs the data, which this task does not give")
        if plan.topology == "nonzero":
            masks[name] = places[name].matrix(whole(weight.detach())) != 0
        elif plan.topology == "magnitude":
            masks[name] = magnitude_mask(plan, places[name].matrix(whole(weight)), seed)
        else:
            masks[name] = plan.initial_mask(seed, inputs).to(weight.device)
    return masks


def _empty(masks: Masks) -> Masks:
    return {name: torch.zeros_like(mask_NK) for name, mask_NK in masks.items()}


def _count(masks: Masks) -> int:
    return sum(int(mask_NK.sum()) for mask_NK in masks.values())


def _share(masks: Masks) -> float:
    return _count(masks) / max(1, sum(mask_NK.numel() for mask_NK in masks.values()))


def _mean_active(masks: Masks, dim: int) -> float:
    """The share of nodes with a link: of outputs over dim 1, of inputs over dim 0."""
    active = [mask_NK.any(dim=dim) for mask_NK in masks.values()]
    return sum(int(nodes.sum()) for nodes in active) / max(1, sum(nodes.numel() for nodes in active))
