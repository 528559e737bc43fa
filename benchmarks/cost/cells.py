"""What is measured for the cost model: each family of packings, forced, on layers that tell its terms apart.

Legend: N out_features, K in_features, M tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ...artifacts import InputError
from ...export.layouts import VALUE_TYPES
from ...kernels.cost import FAMILIES, Work, predict

SQUARE = (2048, 2048)
OBLONG = ((1536, 576), (576, 1536))
"""Shapes that tell what a cell of X costs from what a cell of Y does."""
SMALL = (256, 256)
"""A layer of a small model, where the call itself counts; it is found in a cache."""
DENSITIES = (0.3, 0.1, 0.05, 0.5, 0.01)
OTHER_DENSITIES = (0.3, 0.05)
TOKENS = (1, 8, 64, 256, 2, 16, 4)
OBLONG_TOKENS = (1, 8, 64)
CACHED_TOKENS = (1, 8)
BLOCK = 16


@dataclass(frozen=True)
class CostCell:
    """A packing that is built once and timed at several numbers of tokens.

    Attributes:
        isa: the instruction set of the kernels.
        family: of the packing.
        values: the type of values.
        shape: (N, K).
        density: share of links.
        blocks: the links are whole blocks of 16 x 16.
    """

    isa: str
    family: str
    values: str
    shape: tuple[int, int]
    density: float
    blocks: bool = False

    def mask(self) -> NDArray[np.bool_]:
        """Links [N, K], drawn evenly."""
        rng = np.random.default_rng(1)
        if not self.blocks:
            return rng.random(self.shape) < self.density
        drawn = rng.random([size // BLOCK for size in self.shape]) < self.density
        return np.kron(drawn, np.ones((BLOCK, BLOCK), np.bool_)).astype(np.bool_)

    def work(self, links: int | None = None) -> Work:
        """The layer as the cost model knows it."""
        cells = self.shape[0] * self.shape[1]
        return Work(*self.shape, round(self.density * cells) if links is None else links, self.values, self.blocks)

    def calls(self) -> list[tuple[int, bool]]:
        """Numbers of tokens, and whether the weight is found in a cache."""
        if self.shape == SQUARE:
            return [(tokens, False) for tokens in TOKENS]
        if self.shape == SMALL:
            return [(tokens, True) for tokens in OBLONG_TOKENS]
        return [(tokens, False) for tokens in OBLONG_TOKENS] + [(tokens, True) for tokens in CACHED_TOKENS]


def plan_cells(isa: str) -> list[CostCell]:
    """All cells of an instruction set, the most telling ones first; InputError where there is no such set."""
    shapes = [(SQUARE, density) for density in DENSITIES]
    shapes += [(shape, density) for density in OTHER_DENSITIES for shape in (*OBLONG, SMALL)]
    cells = [
        CostCell(isa, family, values, shape, density, family == "panel")
        for (shape, density), values, family in product(shapes, VALUE_TYPES, FAMILIES)
    ]
    return [cell for cell in cells if has_kernels(cell)]


def has_kernels(cell: CostCell) -> bool:
    """Whether the family can hold the cell on its instruction set; InputError where there is no such set."""
    predict(cell.work(), 1, cell.isa)
    try:
        predict(cell.work(), 1, cell.isa, cell.family)
    except InputError:
        return False
    return True


def groups(cells: list[CostCell]) -> Iterator[tuple[str, str]]:
    """The pairs of family and values, each of which has a row in the table."""
    yield from dict.fromkeys((cell.family, cell.values) for cell in cells)
