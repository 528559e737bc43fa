"""Which links come.

Legend: N out_features, K in_features. Where masks have a structure, N and K count its units.
"""

import torch
from torch import Tensor

from ..topology.structure import cap_groups
from .sampling import sample_without_replacement

_LAST = 1e12


def regrow_links(
    scores_NK: Tensor,
    mask_NK: Tensor,
    count: int,
    *,
    rule: str,
    temperature: float,
    generator: torch.Generator,
    grouped: bool = False,
) -> Tensor:
    """The mask [N, K] with `count` absent links added.

    "top" adds the highest scores (ties in order of place). "soft" adds a sample without replacement with probability
    proportional to score^temperature (arXiv 2501.19107). Where fewer than `count` absent links have a
    positive score, the rest is drawn uniformly, under both rules. `grouped` keeps a 2:4 mask legal: a group of 4 inputs
    takes no more links than it has room for.
    """
    if grouped:
        return _regrow_grouped(scores_NK, mask_NK, count, rule, temperature, generator)
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


def _regrow_grouped(
    scores_NK: Tensor, mask_NK: Tensor, count: int, rule: str, temperature: float, generator: torch.Generator
) -> Tensor:
    """Keys of all places, smallest first: a race for "soft", the score for "top"; places without a score come last."""
    log_scores_NK = scores_NK.double().log()
    race_NK = torch.empty(mask_NK.shape, dtype=torch.float64).exponential_(generator=generator).to(mask_NK.device)
    keys_NK = race_NK.log() - temperature * log_scores_NK if rule == "soft" else -log_scores_NK
    keys_NK = torch.where(torch.isfinite(log_scores_NK), keys_NK, _LAST * (1 + race_NK)).masked_fill_(
        mask_NK, torch.inf
    )
    grown = torch.topk(cap_groups(keys_NK, mask_NK).flatten(), count, largest=False).indices
    result = mask_NK.flatten().clone()
    result[grown] = True
    return result.view_as(mask_NK)
