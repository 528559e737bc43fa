"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774, algorithm 1): column by column, later columns make good errors.

Legend: N out_features, K in_features, C columns of a strip.
"""

import torch
from torch import Tensor

from ..topology.structure import GROUP, Structure
from .gram import Gram
from .selection import select

_STRIP = 128
"""Columns after which the error is spread over all others."""
_CHOSEN_TOGETHER = 16
"""Columns among which links are chosen at once. The paper has 128; fewer see more of what earlier columns lost."""


@torch.no_grad()
def sparsegpt(weight_NK: Tensor, gram: Gram, units: int, structure: Structure) -> tuple[Tensor, Tensor]:
    """Prune a layer: the weights, 0 off the mask, and the mask, both [N, K].

    Links are chosen by w^2 / U_jj^2 with U the upper Cholesky factor of the inverse of the Gram matrix, strip by strip,
    on weights that have made good what earlier columns lost. A strip gets as many units as it holds of those with the
    highest scores of the whole layer.
    """
    weight_NK = weight_NK.float().clone()
    factor_KK = _inverse_factor(gram.matrix_KK)
    diagonal_K = factor_KK.diagonal()
    planned_NK = select((weight_NK / diagonal_K) ** 2, units, structure)
    width = _strip_width(structure)
    strip_columns = max(1, _STRIP // width) * width
    mask_NK = torch.zeros_like(planned_NK)
    columns = weight_NK.shape[1]
    for start in range(0, columns, strip_columns):
        end = min(start + strip_columns, columns)
        errors_NC = torch.zeros_like(weight_NK[:, start:end])
        for column in range(start, end):
            if (column - start) % width == 0:
                strip = slice(column, min(column + width, end))
                quota = int(structure.fold_mask(planned_NK[:, strip]).sum())
                mask_NK[:, strip] = select((weight_NK[:, strip] / diagonal_K[strip]) ** 2, quota, structure)
            lost_N = weight_NK[:, column].masked_fill(mask_NK[:, column], 0)
            errors_NC[:, column - start] = lost_N / diagonal_K[column]
            weight_NK[:, column:end].addr_(errors_NC[:, column - start], factor_KK[column, column:end], alpha=-1)
        weight_NK[:, end:] -= errors_NC @ factor_KK[start:end, end:]
    return weight_NK.masked_fill_(~mask_NK, 0), mask_NK


def _inverse_factor(gram_KK: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse."""
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(gram_KK.double()))
    return torch.linalg.cholesky(inverse_KK, upper=True).float()


def _strip_width(structure: Structure) -> int:
    """Columns whose links are chosen at once: whole groups, or whole blocks that divide a strip."""
    if structure.grouped:
        return GROUP
    return structure.side if structure.side > 1 else _CHOSEN_TOGETHER
