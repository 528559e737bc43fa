"""Which links go.

Legend: N out_features, K in_features, Z links. Where masks have a structure, N and K count its units.
"""

import numpy as np
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
    kept = mask_NK.cpu().numpy().flatten()
    places_Z = np.flatnonzero(kept)
    scores_Z = torch.from_numpy(scores_NK.detach().to("cpu", torch.float32).numpy().reshape(-1)[places_Z])
    kept_Z = smallest(-scores_Z if rule == "hard" else race_keys(scores_Z, generator, temperature), count)
    if missing := count - int(kept_Z.count_nonzero()):
        # Fewer have a score: of the others as many as are missing stay, uniformly.
        kept_Z |= smallest(race_keys(torch.ones_like(scores_Z), generator, excluded=kept_Z), missing)
    kept[places_Z[~kept_Z.numpy()]] = False
    return torch.from_numpy(kept).view(mask_NK.shape).to(mask_NK.device)
