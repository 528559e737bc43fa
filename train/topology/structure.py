"""Structures that hardware reads fast: which masks are legal, and the units in which links come and go.

Legend: N out_features, K in_features; R, C rows and columns of the grid of units.

A mask is worked on as a grid of units. For "unstructured" and "2:4" a unit is a link; for "block" it is a block of
b x b links, a node of the graph then being b neurons. "2:4" also limits each aligned group of 4 inputs of a row to 2
links.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...artifacts import InputError

StructureKind = Literal["unstructured", "2:4", "block"]
GROUP = 4
LINKS_A_GROUP = 2


@dataclass(frozen=True)
class Structure:
    """A structure of masks.

    Args:
        kind: "unstructured", "2:4" or "block".
        block_size: b, for "block".
    """

    kind: StructureKind = "unstructured"
    block_size: int = 16

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise InputError(f"sparsity.block_size must be at least 1, not {self.block_size}")

    @property
    def side(self) -> int:
        """Links along one side of a unit."""
        return self.block_size if self.kind == "block" else 1

    @property
    def grouped(self) -> bool:
        """Whether groups of inputs limit the links."""
        return self.kind == "2:4"

    @property
    def max_density(self) -> float:
        """The densest legal mask."""
        return LINKS_A_GROUP / GROUP if self.grouped else 1.0

    def check(self, layer: str, out_features: int, in_features: int, density: float) -> None:
        """Refuse, with an InputError that names the layer, a shape or density that the structure does not admit."""
        where = f"sparsity.structure '{self.kind}' in layer '{layer}' ({out_features}x{in_features})"
        if self.grouped and density > self.max_density:
            raise InputError(f"{where}: a density of {density:g} is infeasible, the most is {self.max_density:g}")
        if self.grouped and in_features % GROUP:
            raise InputError(f"{where}: in_features is not a multiple of {GROUP}; exclude the layer")
        if out_features % self.side or in_features % self.side:
            raise InputError(f"{where}: the shape is not a multiple of sparsity.block_size {self.side}")

    def grid(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Rows and columns of the grid of units."""
        return out_features // self.side, in_features // self.side

    def fold(self, values_NK: Tensor) -> Tensor:
        """Sum over each unit: [N, K] -> [R, C]."""
        if self.side == 1:
            return values_NK
        rows, columns = self.grid(*values_NK.shape)
        return values_NK.reshape(rows, self.side, columns, self.side).sum(dim=(1, 3))

    def fold_mask(self, mask_NK: Tensor) -> Tensor:
        """The units that hold links: bool [N, K] -> bool [R, C]."""
        return mask_NK if self.side == 1 else self.fold(mask_NK.int()) > 0

    def unfold(self, mask_RC: Tensor) -> Tensor:
        """Whole units: bool [R, C] -> bool [N, K]."""
        if self.side == 1:
            return mask_RC
        return mask_RC.repeat_interleave(self.side, dim=0).repeat_interleave(self.side, dim=1)

    def is_legal(self, mask_NK: Tensor) -> bool:
        """Whether a mask is of this structure."""
        if self.grouped:
            groups = mask_NK.reshape(mask_NK.shape[0], -1, GROUP)
            return int(groups.sum(dim=2).max()) <= LINKS_A_GROUP
        return torch.equal(self.unfold(self.fold_mask(mask_NK)), mask_NK)


def cap_groups(keys_RC: Tensor, mask_RC: Tensor) -> Tensor:
    """Keys, smallest first, in which a group offers no more places than it has room for.

    Taking the smallest of all then equals taking one after another with full groups passed over.

    Args:
        keys_RC: float [R, C], inf where there is nothing to take. C is a multiple of `GROUP`.
        mask_RC: bool [R, C], the links that are there already.

    Returns:
        The keys with inf at the places that a group has no room for.
    """
    groups = keys_RC.reshape(keys_RC.shape[0], -1, GROUP)
    ranks = groups.argsort(dim=2).argsort(dim=2)
    room = LINKS_A_GROUP - mask_RC.reshape(groups.shape).sum(dim=2, keepdim=True)
    return groups.masked_fill(ranks >= room, torch.inf).view_as(keys_RC)


def legalise_groups(mask_NK: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A 2:4 mask with as many links as `mask_NK`, each moved no further along its row than need be.

    Rows keep their degrees where half of their inputs suffice; what is above goes to rows with room.

    Args:
        mask_NK: bool [N, K], K a multiple of `GROUP`, with at most N * K / 2 links.
        rng: settles ties.
    """
    rows, columns = mask_NK.shape
    degree_N = _spread(mask_NK.sum(axis=1), columns // GROUP * LINKS_A_GROUP, rng)
    keys = _distance_to_link(mask_NK) + 0.5 * rng.random(mask_NK.shape)
    groups = keys.reshape(rows, -1, GROUP)
    groups[np.argsort(np.argsort(groups, axis=2), axis=2) >= LINKS_A_GROUP] = np.inf
    ranks_NK = np.argsort(np.argsort(groups.reshape(rows, columns), axis=1), axis=1)
    return ranks_NK < degree_N[:, None]


def _spread(degree_N: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Degrees of the same sum, none above `limit`."""
    total, degree_N = int(degree_N.sum()), np.minimum(degree_N, limit)
    while missing := total - int(degree_N.sum()):
        with_room = np.flatnonzero(degree_N < limit)
        degree_N[with_room] += rng.multinomial(missing, np.full(len(with_room), 1 / len(with_room)))
        degree_N = np.minimum(degree_N, limit)
    return degree_N


def _distance_to_link(mask_NK: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of every place to the nearest link of its row, on the ring of inputs; K in a row without links."""
    columns = mask_NK.shape[1]
    places = np.arange(3 * columns)
    thrice = np.tile(mask_NK, (1, 3))
    before = places - np.maximum.accumulate(np.where(thrice, places, -columns), axis=1)
    after = np.minimum.accumulate(np.where(thrice, places, 4 * columns)[:, ::-1], axis=1)[:, ::-1] - places
    nearest = np.minimum(before, after)[:, columns : 2 * columns]
    return np.minimum(nearest, columns).astype(np.float64)
