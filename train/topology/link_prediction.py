"""Cannistraci-Hebb link prediction on a bipartite graph: gradient-free scores for links that are absent.

Legend: N out_features, K in_features; A is the mask as 0/1.
"""

import torch
from torch import Tensor

from ...artifacts import InputError

LINK_SCORES = ("CH2_L3n", "CH3_L3n")


def link_scores(mask: Tensor, kind: str) -> Tensor:
    """Node-based CH2-L3n or CH3-L3n scores (arXiv 2501.19107).

    With common neighbours D = A A^T, degrees d and external degrees E[i, j] = max((d_j - D[i, j]) [D[i, j] != 0], 1) -
    1, the similarity is S = (D + [D != 0]) / (E + 1) for CH2 and [D != 0] / (E + 1) for CH3, and the scores are S(A) A
    + (S(A^T) A^T)^T. The cost is four matrix products.

    Args:
        mask: bool [N, K].
        kind: "CH2_L3n" or "CH3_L3n".

    Returns:
        float32 [N, K], existing links included; zero where no path of length 3 joins the two nodes.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in LINK_SCORES:
        raise InputError(f"regrowth.score '{kind}' is none of {', '.join(LINK_SCORES)}")
    adjacency_NK = mask.float()
    scores_NK = _similarity(adjacency_NK, kind) @ adjacency_NK
    scores_NK += (_similarity(adjacency_NK.T.contiguous(), kind) @ adjacency_NK.T).T
    return scores_NK


def _similarity(adjacency: Tensor, kind: str) -> Tensor:
    """S over the rows of `adjacency`. Counts below 2^24 are exact in float32."""
    common = adjacency @ adjacency.T
    connected = common != 0
    degree = adjacency.sum(dim=1)
    external = torch.clamp((degree[None, :] - common) * connected, min=1)  # E + 1
    numerator = common + connected if kind == "CH2_L3n" else connected.float()
    return numerator.div_(external)
