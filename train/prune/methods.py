"""The methods of pruning a layer by one name each.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..topology.structure import Structure
from .alps import alps
from .config import Method
from .gram import Gram
from .selection import select, select_by_row
from .sparsegpt import sparsegpt

Prune = Callable[[Tensor, Gram, int, Structure], tuple[Tensor, Tensor]]
"""From weights [N, K], the Gram matrix of the inputs and a number of units to weights, 0 off the mask, and the mask."""


@torch.no_grad()
def magnitude(weight_NK: Tensor, gram: Gram, units: int, structure: Structure) -> tuple[Tensor, Tensor]:
    """The largest weights of the layer stay as they are; the text is not looked at."""
    del gram
    mask_NK = select(weight_NK.abs(), units, structure)
    return weight_NK.masked_fill(~mask_NK, 0), mask_NK


@torch.no_grad()
def wanda(weight_NK: Tensor, gram: Gram, units: int, structure: Structure) -> tuple[Tensor, Tensor]:
    """Those stay as they are whose |w| times the norm of their input is largest in its row (arXiv 2306.11695)."""
    mask_NK = select_by_row(weight_NK.abs() * gram.norms_K, units, structure)
    return weight_NK.masked_fill(~mask_NK, 0), mask_NK


METHODS: dict[Method, Prune] = {"alps": alps, "sparsegpt": sparsegpt, "wanda": wanda, "magnitude": magnitude}
