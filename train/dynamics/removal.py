"""Which links go.

Legend: N out_features, K in_features, Z links. Where masks have a structure, N and K count its units.
"""

import torch
from torch import Tensor

from .sampling import sample_without_replacement

_EPSILON = 1e-5
MEST_GRADIENT_WEIGHT = 0.01


def removal_scores(weight_NK: Tensor, mask_NK: Tensor, kind: str, gradient_NK: Tensor | None = None) -> Tensor:
    """Importance [N, K] of links; zero off the mask.

    "magnitude": |w|. "RI": relative importance, |w| over its column's sum plus |w| over its row's sum, each sum plus
    1e-5 (arXiv 2501.19107). "MEST": |w| + 0.01 |gradient| (arXiv 2110.14032).
    """
    magnitude = weight_NK.detach().abs() * mask_NK
    if kind == "magnitude":
        return magnitude
    if kind == "MEST":
        assert gradient_NK is not None
        return magnitude + MEST_GRADIENT_WEIGHT * gradient_NK.abs() * mask_NK
    by_column = magnitude / (magnitude.sum(dim=0, keepdim=True) + _EPSILON)
    by_row = magnitude / (magnitude.sum(dim=1, keepdim=True) + _EPSILON)
    return by_column + by_row


def keep_links(
    scores_NK: Tensor, mask_NK: Tensor, count: int, *, rule: str, temperature: float, generator: torch.Generator
) -> Tensor:
    """The mask [N, K] with `count` of its links kept.

    "hard" keeps the highest scores. "soft" keeps a sample without replacement with probability proportional to
    score^temperature (arXiv 2501.19107).
    """
    places_Z = torch.nonzero(mask_NK.flatten()).flatten()
    if count == len(places_Z):
        return mask_NK.clone()
    scores_Z = scores_NK.flatten()[places_Z]
    if rule == "hard":
        kept = torch.topk(scores_Z, count).indices
    else:
        kept = sample_without_replacement(temperature * scores_Z.double().log(), count, generator)
    result = torch.zeros_like(mask_NK).flatten()
    result[places_Z[kept]] = True
    return result.view_as(mask_NK)
