"""Which links go.

Legend: N out_features, K in_features. Where masks have a structure, N and K count its units.
"""

import torch
from torch import Tensor

from .sampling import Generator, race_keys, smallest

_EPSILON = 1e-5
MEST_GRADIENT_WEIGHT = 0.01


def removal_scores(weight_NK: Tensor, mask_NK: Tensor, kind: str, gradient_NK: Tensor | None = None) -> Tensor:
    """Importance [N, K] of links; zero off the mask.

    "magnitude": |w|. "RI": relative importance, |w| over its column's sum plus |w| over its row's sum, each sum plus
    1e-5 (arXiv 2501.19107). "MEST": |w| + 0.01 |gradient| (arXiv 2110.14032).
    """
    magnitude = weight_NK.detach().abs().masked_fill_(~mask_NK, 0)
    if kind == "magnitude":
        return magnitude
    if kind == "MEST":
        assert gradient_NK is not None
        return magnitude + MEST_GRADIENT_WEIGHT * gradient_NK.abs() * mask_NK
    by_column = magnitude / (magnitude.sum(dim=0, keepdim=True) + _EPSILON)
    by_row = magnitude / (magnitude.sum(dim=1, keepdim=True) + _EPSILON)
    return by_column + by_row


def keep_links(
    scores_NK: Tensor, mask_NK: Tensor, count: int, *, rule: str, temperature: float, generator: Generator
) -> Tensor:
    """The mask [N, K] with `count` of its links kept.

    "hard" keeps the highest scores. "soft" keeps a sample without replacement with probability proportional to
    score^temperature (arXiv 2501.19107).
    """
    if count == int(mask_NK.count_nonzero()):
        return mask_NK.clone()
    absent_NK = ~mask_NK.cpu()
    if rule == "hard":
        keys_NK = (-scores_NK.detach().to("cpu", torch.float32)).masked_fill_(absent_NK, torch.inf)
    else:
        keys_NK = race_keys(scores_NK, generator, temperature, excluded=absent_NK)
    kept_NK = smallest(keys_NK, count)
    if missing := count - int(kept_NK.count_nonzero()):
        # Fewer have a score: of the others as many as are missing stay, uniformly.
        ones_NK = torch.ones(mask_NK.shape)
        kept_NK |= smallest(race_keys(ones_NK, generator, excluded=absent_NK | kept_NK), missing)
    return kept_NK.to(mask_NK.device)
