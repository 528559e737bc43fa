"""ALPS (Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning", NeurIPS 2024).

Legend: N out_features, K in_features.

Minimises |X (W' - W)^T|^2 over weights W' with a given number of links: the alternating direction method of multipliers
finds the links, with a penalty that grows as they settle, and conjugate gradients the weights on them. Columns are
scaled so that the Gram matrix has a unit diagonal. Matrices are transposed from the paper's: weights are [N, K] here.
"""

import torch
from torch import Tensor

from ..topology.structure import Structure
from .gram import Gram
from .selection import select

_FIRST_PENALTY = 0.1
_MOST_ITERATIONS = 300
_CHECK_EVERY = 3
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""By how much the penalty grows where more than this share of the links changed."""
_REFINING_STEPS = 10


@torch.no_grad()
def alps(weight_NK: Tensor, gram: Gram, units: int, structure: Structure) -> tuple[Tensor, Tensor]:
    """Prune a layer: the weights, 0 off the mask, and the mask, both [N, K]."""
    scale_K = gram.norms_K
    gram_KK = gram.matrix_KK / torch.outer(scale_K, scale_K)
    dense_NK = weight_NK.float() * scale_K
    mask_NK = _find_links(dense_NK, gram_KK, units, structure)
    start_NK = dense_NK.masked_fill(~mask_NK, 0)
    return refine(start_NK, dense_NK, gram_KK, mask_NK, _REFINING_STEPS) / scale_K, mask_NK


def _find_links(dense_NK: Tensor, gram_KK: Tensor, units: int, structure: Structure) -> Tensor:
    """The links that the method comes to (equations 4 and 5)."""
    values_K, vectors_KK = torch.linalg.eigh(gram_KK)
    values_K = values_K.clamp(min=0)
    target_NK = dense_NK @ gram_KK
    penalty, dual_NK = _FIRST_PENALTY, torch.zeros_like(dense_NK)
    mask_NK = checked_NK = select(dense_NK.square(), units, structure)
    sparse_NK = dense_NK.masked_fill(~mask_NK, 0)
    inverse_KK = _inverse(values_K, vectors_KK, penalty)
    for iteration in range(1, _MOST_ITERATIONS + 1):
        free_NK = (target_NK - dual_NK + penalty * sparse_NK) @ inverse_KK
        wanted_NK = free_NK + dual_NK / penalty
        mask_NK = select(wanted_NK.square(), units, structure)
        sparse_NK = wanted_NK.masked_fill(~mask_NK, 0)
        dual_NK += penalty * (free_NK - sparse_NK)
        if iteration % _CHECK_EVERY == 0:
            changed = int((mask_NK & ~checked_NK).sum()) / max(1, int(mask_NK.sum()))
            if not changed:
                break
            checked_NK = mask_NK
            penalty *= next(growth for above, growth in _GROWTH if changed > above)
            inverse_KK = _inverse(values_K, vectors_KK, penalty)
    return mask_NK


def _inverse(values_K: Tensor, vectors_KK: Tensor, penalty: float) -> Tensor:
    """(G + penalty I)^-1."""
    return (vectors_KK / (values_K + penalty)) @ vectors_KK.T


def refine(start_NK: Tensor, dense_NK: Tensor, gram_KK: Tensor, mask_NK: Tensor, steps: int) -> Tensor:
    """Conjugate gradients towards the best weights on the links (algorithm 2), all rows at once.

    Args:
        start_NK: weights to start from, 0 off the mask.
        dense_NK: the weights whose products are to be met.
        gram_KK: the Gram matrix of the inputs.
        mask_NK: the links.
        steps: of conjugate gradients.
    """
    absent_NK = ~mask_NK
    weight_NK = start_NK.clone()
    residual_NK = ((dense_NK - weight_NK) @ gram_KK).masked_fill_(absent_NK, 0)
    direction_NK = residual_NK.clone()
    norm_N1 = residual_NK.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        product_NK = (direction_NK @ gram_KK).masked_fill_(absent_NK, 0)
        step_N1 = _ratio(norm_N1, (direction_NK * product_NK).sum(dim=1, keepdim=True))
        weight_NK += step_N1 * direction_NK
        residual_NK -= step_N1 * product_NK
        next_N1 = residual_NK.square().sum(dim=1, keepdim=True)
        direction_NK = residual_NK + _ratio(next_N1, norm_N1) * direction_NK
        norm_N1 = next_N1
    return weight_NK


def _ratio(over_N1: Tensor, under_N1: Tensor) -> Tensor:
    """The quotient; 0 where a row has converged."""
    return torch.where(under_N1 > 0, over_N1 / under_N1.clamp(min=torch.finfo(under_N1.dtype).tiny), 0)
