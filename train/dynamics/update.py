"""One topology update of one layer, in the units of its structure: removal, then regrowth.

Legend: N out_features, K in_features; R, C rows and columns of the grid of units, of one part of the layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..threads import one_thread
from ..topology import LINK_SCORES, link_scores
from .density import removal_fraction
from .plan import LayerPlan
from .regrowth import regrow_links
from .removal import keep_links, removal_scores
from .sampling import Generator, generator_for


@dataclass(frozen=True)
class UpdateReport:
    """What one topology update did, over all layers.

    Shares are from 0 to 1: `overlap`, of the regrown links, those that had just been removed; `survived`, of the links
    that the last update grew, those that this one kept; `itop`, of all possible links, those that ever were (the rate
    of in-time over-parameterisation, arXiv 2102.02887); `active_outputs` and `active_inputs`, of the nodes, those with
    a link. `stopped` counts the layers whose graph is left alone, `seconds` is the time the update took.
    """

    step: int
    update: int
    density: float
    fraction: float
    removed: int
    regrown: int
    seconds: float
    overlap: float = 0.0
    survived: float = 0.0
    itop: float = 0.0
    active_outputs: float = 1.0
    active_inputs: float = 1.0
    stopped: int = 0


@dataclass(frozen=True)
class Moment:
    """When an update takes place: its number, and the share of all updates that have gone by, in [0, 1]."""

    update: int
    progress: float


@one_thread()
def remove(
    plan: LayerPlan,
    mask_NK: Tensor,
    weight_NK: Tensor,
    gradient_NK: Tensor | None,
    when: Moment,
    seed: int,
    *,
    stopped: bool,
) -> Tensor:
    """The links that stay: cut to the density by lowest score, then without the removed fraction.

    Args:
        plan: the layer's.
        mask_NK: bool [N, K].
        weight_NK: the whole weight.
        gradient_NK: the whole dense gradient, where the removal score looks at it.
        when: of the update.
        seed: of the run.
        stopped: remove no fraction.
    """
    scores = removal_scores(weight_NK, mask_NK, plan.removal_score, gradient_NK)
    fraction = 0.0 if stopped else removal_fraction(plan.fraction, plan.removed, when.progress)
    kept = []
    for part, (scores_RC, mask_RC) in enumerate(_parts(plan, plan.structure.fold(scores), _units(plan, mask_NK))):
        generator = generator_for(seed, plan.name, when.update, "removal", *_identity(plan, part))
        target = min(int(mask_RC.count_nonzero()), plan.units(when.update)[part])
        within_RC = keep_links(scores_RC, mask_RC, target, rule="hard", temperature=1, generator=generator)
        kept_RC = keep_links(
            scores_RC,
            within_RC,
            target - round(fraction * target),
            rule=plan.removal_rule,
            temperature=plan.temperature_at(when.progress),
            generator=generator,
        )
        kept.append(kept_RC)
    return plan.structure.unfold(torch.cat(kept))


@one_thread()
def regrow(plan: LayerPlan, mask_NK: Tensor, gradient_NK: Tensor | None, when: Moment, seed: int) -> Tensor:
    """Back to exactly the links of this density. A link just removed may come back; it starts at 0 again.

    Args:
        plan: the layer's.
        mask_NK: bool [N, K], the links that stay.
        gradient_NK: the whole dense gradient, where the regrowth score is "gradient".
        when: of the update.
        seed: of the run.
    """
    mask = _units(plan, mask_NK)
    gradient = mask if gradient_NK is None else plan.structure.fold(gradient_NK.abs())
    grown = []
    for part, (mask_RC, gradient_RC) in enumerate(_parts(plan, mask, gradient)):
        missing = plan.units(when.update)[part] - int(mask_RC.count_nonzero())
        generator = generator_for(seed, plan.name, when.update, "regrowth", *_identity(plan, part))
        grown.append(_regrow_part(plan, mask_RC, gradient_RC, missing, generator) if missing > 0 else mask_RC)
    return plan.structure.unfold(torch.cat(grown))


@torch.no_grad()
def magnitude_mask(plan: LayerPlan, weight_NK: Tensor, seed: int) -> Tensor:
    """The initial graph of a model that was trained dense: the units with the largest weights, bool [N, K]."""
    magnitude = plan.structure.fold(weight_NK.abs())
    grown = [
        regrow_links(
            scores_RC,
            torch.zeros_like(scores_RC, dtype=torch.bool),
            plan.units(0)[part],
            rule="top",
            temperature=1,
            generator=generator_for(seed, plan.name, "initial", part),
            grouped=plan.structure.grouped,
        )
        for part, (scores_RC,) in enumerate(_parts(plan, magnitude))
    ]
    return plan.structure.unfold(torch.cat(grown))


def _regrow_part(plan: LayerPlan, mask_RC: Tensor, gradient_RC: Tensor, missing: int, generator: Generator) -> Tensor:
    if plan.regrowth_score in LINK_SCORES:
        scores_RC = link_scores(mask_RC, plan.regrowth_score)
    else:
        scores_RC = (
            gradient_RC if plan.regrowth_score == "gradient" else torch.ones(mask_RC.shape, device=mask_RC.device)
        )
    return regrow_links(
        scores_RC,
        mask_RC,
        missing,
        # The highest of equal scores would be the first of the matrix.
        rule="soft" if plan.regrowth_score == "random" else plan.regrowth_rule,
        temperature=plan.regrowth_temperature,
        generator=generator,
        grouped=plan.structure.grouped,
    )


def _units(plan: LayerPlan, mask_NK: Tensor) -> Tensor:
    return plan.structure.fold_mask(mask_NK)


def _parts(plan: LayerPlan, *grids: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each part, of several grids."""
    return zip(*(grid.chunk(plan.parts) for grid in grids), strict=True)


def _identity(plan: LayerPlan, part: int) -> tuple[int, ...]:
    """What tells the random choices of a layer's parts from each other."""
    return (part,) if plan.parts > 1 else ()
