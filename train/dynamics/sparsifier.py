"""Keeps linear layers sparse while any optimizer trains them, and updates their graphs.

Legend: N out_features, K in_features.

After every optimizer step weights, gradients and optimizer moments off the mask are exactly 0, and each layer has
exactly the number of links that its density asks for.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...artifacts import InputError
from ..topology import initial_mask, link_count, link_scores
from .chains import llama_chains, remove_chains
from .config import SparsityConfig
from .density import density_schedule, removal_fraction
from .regrowth import regrow_links
from .removal import keep_links, removal_scores
from .sampling import generator_for, seed_for


@dataclass(frozen=True)
class UpdateReport:
    """What one topology update did, over all layers. `seconds` is the time it took."""

    step: int
    update: int
    density: float
    fraction: float
    removed: int
    regrown: int
    seconds: float


class Sparsifier:
    """Masks on a model's linear layers, and their dynamics.

        sparsifier = Sparsifier(model, SparsityConfig(density=0.3))
        sparsifier.attach(optimizer)
        for batch in data:
            loss(model, batch).backward()
            optimizer.step()
            sparsifier.step()

    `masks` maps layer names to bool [N, K] tensors on the layer's device.

    Raises:
        InputError: the include and exclude globs leave no linear layer.
    """

    def __init__(self, model: nn.Module, config: SparsityConfig, state: dict[str, Any] | None = None) -> None:
        """Put the initial graphs on the model, or, where a `state_dict()` is given, go on with its masks.

        A model that was trained sparse loses links if initial graphs are put on it: give its state.
        """
        self.config = config
        self.steps = 0
        self._layers = dict(_sparse_layers(model, config))
        self._chains = llama_chains(model, list(self._layers)) if config.removal.chains else []
        self._optimizers: list[Optimizer] = []
        self._densities = density_schedule(config.schedule, config.first_density, config.density, config.update.count)
        self.masks = {name: self._initial_mask(name, layer) for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            layer.weight.register_post_accumulate_grad_hook(partial(self._mask_gradient, name))
        if state is None:
            self._apply_masks()
        else:
            self.load_state_dict(state)

    def attach(self, optimizer: Optimizer) -> None:
        """Keep this optimizer's parameters and moments zero off the masks, from its next step on."""
        self._optimizers.append(optimizer)
        optimizer.register_step_post_hook(lambda *_: self._apply_masks())

    def step(self) -> UpdateReport | None:
        """Count one optimizer step; update the graphs where one is due, and then say what was done."""
        self.steps += 1
        due = self.steps % self.config.update.every == 0 and self.steps <= self.config.update.stop
        return self._update() if due and self.config.method in ("chts", "chtss") else None

    @property
    def density(self) -> float:
        """Links over possible links, of all sparse layers together."""
        links = sum(int(mask_NK.sum()) for mask_NK in self.masks.values())
        return links / max(1, sum(mask_NK.numel() for mask_NK in self.masks.values()))

    def state_dict(self) -> dict[str, Any]:
        """The step count and the masks: with the configuration, all that the dynamics depend on."""
        return {"steps": self.steps, "masks": {name: mask_NK.clone() for name, mask_NK in self.masks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; raises InputError where its layers or shapes are not those of this model."""
        if {name: mask_NK.shape for name, mask_NK in state["masks"].items()} != {
            name: mask_NK.shape for name, mask_NK in self.masks.items()
        }:
            raise InputError("the sparsity state is of another model: its layers or shapes differ")
        self.steps = state["steps"]
        for name, mask_NK in state["masks"].items():
            self.masks[name] = mask_NK.to(self.masks[name].device, torch.bool)
        self._apply_masks()

    def _initial_mask(self, name: str, layer: nn.Linear) -> Tensor:
        topology = self.config.topology
        mask_NK = initial_mask(
            topology.kind,
            layer.out_features,
            layer.in_features,
            self.config.first_density,
            seed=seed_for(self.config.seed, name, "initial"),
            **topology.parameters(),
        )
        return mask_NK.to(layer.weight.device)

    def _mask_gradient(self, name: str, weight_NK: Tensor) -> None:
        """Runs as soon as a gradient is there, so that its norm is the one of the links."""
        if weight_NK.grad is not None:
            _zero_off(weight_NK.grad, self.masks[name])

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for name, layer in self._layers.items():
            _zero_off(layer.weight, self.masks[name])

    @torch.no_grad()
    def _update(self) -> UpdateReport:
        """One topology update: density, removal, chains, regrowth (arXiv 2501.19107)."""
        started = time.perf_counter()
        update, progress = self.steps // self.config.update.every, self.steps / self.config.update.stop
        density = self._densities[update]
        fraction = removal_fraction(self.config.fraction.kind, self.config.fraction.initial, progress)
        before = dict(self.masks)
        kept = {name: self._remove(name, update, density, fraction, progress) for name in self.masks}
        remove_chains(kept, self._chains)
        self.masks = {name: self._regrow(name, kept[name], update, density) for name in kept}
        for name, layer in self._layers.items():
            self._reset_links(layer.weight, before[name] & kept[name])
        return UpdateReport(
            step=self.steps,
            update=update,
            density=self.density,
            fraction=fraction,
            removed=sum(int((before[name] & ~kept[name]).sum()) for name in kept),
            regrown=sum(int((self.masks[name] & ~kept[name]).sum()) for name in kept),
            seconds=time.perf_counter() - started,
        )

    def _remove(self, name: str, update: int, density: float, fraction: float, progress: float) -> Tensor:
        """Cut to the density by lowest score, then remove the fraction by the removal rule."""
        config, mask_NK = self.config.removal, self.masks[name]
        scores_NK = removal_scores(self._layers[name].weight, mask_NK, config.score)
        generator = generator_for(self.config.seed, name, update, "removal")
        target = min(int(mask_NK.sum()), self._link_count(name, density))
        mask_NK = keep_links(scores_NK, mask_NK, target, rule="hard", temperature=1, generator=generator)
        return keep_links(
            scores_NK,
            mask_NK,
            target - round(fraction * target),
            rule=config.rule,
            temperature=config.temperature_at(progress),
            generator=generator,
        )

    def _regrow(self, name: str, mask_NK: Tensor, update: int, density: float) -> Tensor:
        """Back to exactly the links of this density. A link just removed may come back; it starts at 0 again."""
        config = self.config.regrowth
        return regrow_links(
            link_scores(mask_NK, config.score),
            mask_NK,
            self._link_count(name, density) - int(mask_NK.sum()),
            rule=config.rule,
            temperature=config.temperature,
            generator=generator_for(self.config.seed, name, update, "regrowth"),
        )

    def _link_count(self, name: str, density: float) -> int:
        layer = self._layers[name]
        return link_count(layer.out_features, layer.in_features, density)

    def _reset_links(self, weight_NK: Tensor, survivors_NK: Tensor) -> None:
        """Zero the weight, gradient and optimizer moments of every link that did not live through the update."""
        _zero_off(weight_NK, survivors_NK)
        if weight_NK.grad is not None:
            _zero_off(weight_NK.grad, survivors_NK)
        for optimizer in self._optimizers:
            for value in optimizer.state.get(weight_NK, {}).values():
                if isinstance(value, Tensor) and value.shape == weight_NK.shape:
                    _zero_off(value, survivors_NK)


def _zero_off(value_NK: Tensor, mask_NK: Tensor) -> None:
    """Set to 0 off the mask. A product with the mask would leave -0 for negative values, and NaN for infinite ones."""
    value_NK.masked_fill_(~mask_NK, 0)


def _sparse_layers(model: nn.Module, config: SparsityConfig) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers that an include glob matches and no exclude glob does."""
    if config.method == "dense":
        return
    found = False
    for name, module in model.named_modules():
        included = any(fnmatchcase(name, glob) for glob in config.include)
        excluded = any(fnmatchcase(name, glob) for glob in config.exclude)
        if isinstance(module, nn.Linear) and included and not excluded:
            found = True
            yield name, module
    if not found:
        raise InputError(f"sparsity.include {config.include} matches no linear layer of {type(model).__name__}")
