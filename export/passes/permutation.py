"""permute: orders of the free dimensions under which more of the masks is 2:4, or in fewer blocks.

The model computes the same function; only sums are taken in another order. Nothing is gained at a layer's cost: an
order is kept where the whole model fits better with it.

Legend: N out_features, K in_features, D size of a dimension, R links that one of its places may have.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder
from ...artifacts import InputError
from ..layouts.nm24 import GROUP, fitting_links
from .edit import ModelEdit, Use
from .freedom import ROTARY_NOTE, Dimension, free_dimensions
from .grouping import TWO_OF_FOUR, block_cost, cluster, swap_search
from .report import LayerChange, Masks, Passed, PassReport, shape_of

Structure = Literal["2:4", "block"]
"""What links should be more of: two of every four columns, or together in blocks."""
BLOCK = 16

_Ordering = Callable[[ModelEdit, Dimension, int], NDArray[np.int64]]
"""A model, one of its dimensions and a seed to an order [D] of the dimension."""


@dataclass(frozen=True)
class _Goal:
    """How a structure is measured, and the sweeps over all dimensions that bring a model nearer to it."""

    width: int
    measure: Callable[[NDArray[np.bool_]], tuple[int, int]]
    """What has the structure in a mask, and of how much."""
    sweeps: tuple[_Ordering, ...]

    def fit(self, masks: Iterable[NDArray[np.bool_]]) -> float:
        """The share of all masks together that has the structure; 1 where there is nothing to measure."""
        measured = [self.measure(mask_NK) for mask_NK in masks]
        whole = sum(of for _, of in measured)
        return sum(good for good, _ in measured) / whole if whole else 1.0


def permute(
    model: PreTrainedModel,
    masks: Masks,
    structure: Structure = "2:4",
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda dimension: None,
    dimensions: Sequence[Dimension] | None = None,
    decoder: Decoder | None = None,
) -> Passed:
    """Order the free dimensions of a decoder (see `freedom`).

    Args:
        model, masks: the model and the mask of each sparse layer. Both are left as they are.
        structure: "2:4": the links of a best two of every four columns; "block": links over the places of all 16 x 16
        blocks that have any. seed: the result follows from it. progress: told each dimension as its search begins.
        dimensions: to order; None: all that are free. decoder: what the model is; None: what its configuration says.

    Raises:
        InputError: the structure is unknown, or masks and weights do not fit together.
    """
    if structure not in get_args(Structure):
        raise InputError(f"structure '{structure}' is none of {', '.join(get_args(Structure))}")
    goal = _GOALS[structure]
    edit = ModelEdit(model, masks, decoder)
    free = free_dimensions(model, edit.decoder) if dimensions is None else dimensions
    movable, notes = _movable(free, goal.width)
    moved: dict[str, list[str]] = {layer: [] for layer in masks}
    for sweep, ordering in enumerate(goal.sweeps):
        for number, dimension in enumerate(movable):
            progress(dimension.name)
            order_D = ordering(edit, dimension, int(np.random.SeedSequence([seed, sweep, number]).generate_state(1)[0]))
            if _reorder(edit, dimension, order_D):
                _note(moved, dimension)
    before = goal.fit(masks.values())
    if goal.fit(edit.masks.values()) <= before:
        edit, moved = ModelEdit(model, masks, edit.decoder), {layer: [] for layer in masks}
        notes.append(
            "no order was found that brings the masks nearer to the structure: all dimensions are as they were"
        )
    layers = tuple(_change(name, masks[name], edit.masks[name], goal, moved[name]) for name in masks)
    after = goal.fit(edit.masks.values())
    report = PassReport(f"permute {structure}", layers, (*notes, ROTARY_NOTE), before, after)
    return Passed(edit.model, edit.decoder, edit.masks, report)


def two_of_four_fit(mask_NK: NDArray[np.bool_]) -> tuple[int, int]:
    """The links that a best two of every four columns hold, of all links."""
    return fitting_links(mask_NK), int(np.count_nonzero(mask_NK))


def block_fit(mask_NK: NDArray[np.bool_]) -> tuple[int, int]:
    """The links, of the places of all 16 x 16 blocks that have any."""
    blocks = np.count_nonzero(_in_blocks(_in_blocks(mask_NK).T))
    return int(np.count_nonzero(mask_NK)), int(blocks) * BLOCK**2


def _movable(dimensions: Sequence[Dimension], width: int) -> tuple[list[Dimension], list[str]]:
    """The dimensions whose groups of `width` lie on the layers' own; for the others, a note."""
    movable = [one for one in dimensions if all(use.start % width == 0 for use in one.uses) and one.size >= 2 * width]
    fixed = [one for one in dimensions if one not in movable]
    if not fixed:
        return movable, []
    others = f" and {len(fixed) - 1} others stay" if len(fixed) > 1 else " stays"
    reason = f"{fixed[0].size} places are fewer than two groups of {width}, or do not start at one"
    return movable, [f"{fixed[0].name}{others}: {reason}"]


def _reorder(edit: ModelEdit, dimension: Dimension, order_D: NDArray[np.int64]) -> bool:
    if np.array_equal(order_D, np.arange(dimension.size)):
        return False
    for use in dimension.uses:
        edit.select(use, order_D, dimension.size)
    return True


def _note(moved: dict[str, list[str]], dimension: Dimension) -> None:
    for layer in dict.fromkeys(use.layer for use in dimension.uses if use.layer in moved):
        if dimension.name not in moved[layer]:
            moved[layer].append(dimension.name)


def _change(
    name: str, before_NK: NDArray[np.bool_], after_NK: NDArray[np.bool_], goal: _Goal, moved: list[str]
) -> LayerChange:
    links = int(np.count_nonzero(before_NK))
    reason = f"reordered: {', '.join(moved)}" if moved else "left: no better order of a free dimension was found"
    return LayerChange(
        name=name,
        shape_before=shape_of(before_NK),
        shape_after=shape_of(after_NK),
        links_before=links,
        links_after=links,
        reason=reason,
        fit_before=goal.fit([before_NK]),
        fit_after=goal.fit([after_NK]),
    )


def _links(edit: ModelEdit, use: Use, size: int) -> NDArray[np.bool_]:
    """What the places of a dimension are linked to in one layer, [D, R]; R = 0 where it has no mask or no gap in it."""
    mask_NK = edit.masks.get(use.layer)
    if mask_NK is None or not use.parameter.endswith(".weight") or mask_NK.all():
        return np.zeros((size, 0), bool)
    return np.moveaxis(mask_NK, use.axis, 0)[use.start : use.start + size]


def _in_blocks(links_DR: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether there is any link to each block of places, [D, ceil(R / 16)]."""
    rows, columns = links_DR.shape
    padded = np.pad(links_DR, [(0, 0), (0, -columns % BLOCK)])
    return padded.reshape(rows, padded.shape[1] // BLOCK, BLOCK).any(axis=2)


def _order_two_of_four(edit: ModelEdit, dimension: Dimension, seed: int) -> NDArray[np.int64]:
    """Only columns count: a row's own place changes no group."""
    columns = [_links(edit, use, dimension.size) for use in dimension.uses if use.axis == 1]
    return swap_search(np.concatenate(columns, axis=1), TWO_OF_FOUR, seed=seed)


def _order_similar(edit: ModelEdit, dimension: Dimension, seed: int) -> NDArray[np.int64]:
    """By single links: before both sides of a layer are in order, no blocks are there to count."""
    return cluster(np.concatenate([_links(edit, use, dimension.size) for use in dimension.uses], axis=1), BLOCK)


def _order_blocks(edit: ModelEdit, dimension: Dimension, seed: int) -> NDArray[np.int64]:
    """By the blocks that the other side of each layer has now: its cost is the number of blocks."""
    blocks = [_in_blocks(_links(edit, use, dimension.size)) for use in dimension.uses]
    return swap_search(np.concatenate(blocks, axis=1), block_cost(BLOCK), seed=seed)


_GOALS: dict[str, _Goal] = {
    "2:4": _Goal(GROUP, two_of_four_fit, (_order_two_of_four,)),
    "block": _Goal(BLOCK, block_fit, (_order_similar, _order_blocks)),
}
