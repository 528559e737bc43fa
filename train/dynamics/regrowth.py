"""Which links come.

Legend: N out_features, K in_features. Where masks have a structure, N and K count its units.
"""

import torch
from torch import Tensor

from ..topology.structure import cap_groups
from .sampling import Generator, race_keys, smallest


def regrow_links(
    scores_NK: Tensor,
    mask_NK: Tensor,
    count: int,
    *,
    rule: str,
    temperature: float,
    generator: Generator,
    grouped: bool = False,
) -> Tensor:
    """The mask [N, K] with `count` absent links added.

    "top" adds the highest scores (ties in order of place). "soft" adds a sample without replacement with probability
    proportional to score^temperature (arXiv 2501.19107). Where fewer than `count` absent links have a
    positive score, the rest is drawn uniformly, under both rules. `grouped` keeps a 2:4 mask legal: a group of 4 inputs
    takes no more links than it has room for.
    """
    if rule == "top":
        keys_NK = torch.where((scores_NK > 0) & ~mask_NK, -scores_NK, torch.inf).to("cpu", torch.float32)
    else:
        keys_NK = race_keys(scores_NK, generator, temperature, excluded=mask_NK)
    if grouped:
        keys_NK = cap_groups(keys_NK, mask_NK.cpu())
    grown_NK = mask_NK | smallest(keys_NK, count).to(mask_NK.device)
    missing = count - int(grown_NK.count_nonzero() - mask_NK.count_nonzero())
    if not missing:
        return grown_NK
    ones_NK = torch.ones_like(keys_NK)
    return regrow_links(ones_NK, grown_NK, missing, rule="soft", temperature=1, generator=generator, grouped=grouped)
