"""Which links stay, by scores: exactly as many as a layer is to have, in its structure.

Legend: N out_features, K in_features; R, C rows and columns of the grid of units (see `topology.structure`).
"""

import torch
from torch import Tensor

from ..dynamics.sampling import smallest
from ..topology.structure import Structure, cap_groups


def select(scores_NK: Tensor, units: int, structure: Structure) -> Tensor:
    """The `units` units with the highest sums of scores, of equal ones the first, bool [N, K].

    Args:
        scores_NK: at least 0.
        units: links, or blocks; as many as the structure has room for, at most.
        structure: what the mask must obey.
    """
    keys_RC = -structure.fold(scores_NK.float()).cpu()
    if structure.grouped:
        keys_RC = cap_groups(keys_RC, torch.zeros_like(keys_RC, dtype=torch.bool))
    return structure.unfold(smallest(keys_RC.contiguous(), units)).to(scores_NK.device)


def select_by_row(scores_NK: Tensor, units: int, structure: Structure) -> Tensor:
    """As `select`, but unstructured rows have equally many links, the first ones one more where they must."""
    if structure.kind != "unstructured":
        return select(scores_NK, units, structure)
    rows, columns = scores_NK.shape
    order_NK = scores_NK.argsort(dim=1, descending=True, stable=True)
    quota_N = torch.full((rows, 1), units // rows, device=scores_NK.device)
    quota_N[: units % rows] += 1
    kept_NK = torch.arange(columns, device=scores_NK.device) < quota_N
    return torch.zeros_like(kept_NK).scatter_(1, order_NK, kept_NK)
