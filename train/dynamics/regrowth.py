"""Which links come.

Legend: N out_features, K in_features.
"""

import torch
from torch import Tensor

from .sampling import sample_without_replacement


def regrow_links(
    scores_NK: Tensor, mask_NK: Tensor, count: int, *, rule: str, temperature: float, generator: torch.Generator
) -> Tensor:
    """The mask [N, K] with `count` absent links added.

    "top" adds the highest scores (ties in order of place). "soft" adds a sample without replacement with probability
    proportional to score^temperature (arXiv 2501.19107). Where fewer than `count` absent links have a
    positive score, the rest is drawn uniformly, under both rules.
    """
    absent = torch.nonzero(~mask_NK.flatten()).flatten()
    log_scores = temperature * scores_NK.flatten()[absent].double().log()
    if rule == "top":
        positive = int(torch.isfinite(log_scores).sum())
        best = torch.topk(log_scores, min(count, positive)).indices
        log_scores[best] = torch.inf
        grown = best if count <= positive else _fill(log_scores, best, count, generator)
    else:
        grown = sample_without_replacement(log_scores, count, generator)
    result = mask_NK.flatten().clone()
    result[absent[grown]] = True
    return result.view_as(mask_NK)


def _fill(log_scores: Tensor, best: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`best` and as many of the others, drawn uniformly, as make up `count`."""
    others = torch.nonzero(log_scores != torch.inf).flatten()
    drawn = sample_without_replacement(torch.zeros(others.numel()), count - best.numel(), generator)
    return torch.cat([best, others[drawn.to(others.device)]])
