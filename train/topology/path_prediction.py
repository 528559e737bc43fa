"""Path-based Cannistraci-Hebb link prediction: the original scores, over every path of length 3.

Legend: N out_features, K in_features; u, b output nodes, v, a input nodes; I neighbours of u, J neighbours of those.

A pair (u, v) is joined by paths u - a - b - v. Its local community is all of their inner nodes. With di the links of
an inner node inside the community and de those outside, the links to u and v excepted, a path adds (ICLR 2024,
openreview iayEcORsGd)

    CH2-L3p: sqrt((1 + di_a) (1 + di_b)) / sqrt((1 + de_a) (1 + de_b))
    CH3-L3p: 1 / sqrt((1 + de_a) (1 + de_b))

In a bipartite graph di_a is the number of common neighbours of a and v, and di_b that of b and u: a factor depends on
two nodes, not on four. A path's weight is F[a, v] G[b, u], and the score of a row u is, over its neighbours a,

    score[u, v] = sum_a F[a, v] Q[a, v],    Q = (A[b, a] G[b, u])^T A[b, v]

so a row is one matrix product over the neighbours of its neighbours. Where u and v are linked already, that link is
left out of the community.
"""

import torch
from torch import Tensor


def path_scores(mask_NK: Tensor, kind: str) -> Tensor:
    """CH2-L3p ("CH2_L3p") or CH3-L3p ("CH3_L3p") scores.

    Args:
        mask_NK: bool [N, K].
        kind: the score.

    Returns:
        float32 [N, K], existing links included; zero where no path of length 3 joins the two nodes.
    """
    # Rows of the smaller side: fewer, larger products.
    if mask_NK.shape[0] > mask_NK.shape[1]:
        return path_scores(mask_NK.T, kind).T.contiguous()
    a_NK = mask_NK.float()
    a_KN = a_NK.T.contiguous()
    absent = _Factors(a_NK, a_KN, kind, linked=False)
    linked = _Factors(a_NK, a_KN, kind, linked=True)
    scores_NK = torch.zeros_like(a_NK)
    for u in range(a_NK.shape[0]):
        inputs_I = a_NK[u].nonzero().flatten()
        if len(inputs_I) == 0:
            continue
        between_IN = a_KN[inputs_I]
        outputs_J = between_IN.any(dim=0).nonzero().flatten()
        between_IJ = between_IN[:, outputs_J]
        onward_JK = a_NK[outputs_J]
        paths_IK = (between_IJ * absent.outputs_NN[u, outputs_J]) @ onward_JK
        scores_NK[u] = (paths_IK * absent.inputs_KK[inputs_I]).sum(dim=0)
        # Existing links v of u are among the inputs a: the columns of the same product at v, by their own factors.
        paths_II = (between_IJ * linked.outputs_NN[u, outputs_J]) @ onward_JK[:, inputs_I]
        scores_NK[u, inputs_I] = (paths_II * linked.inputs_KK[inputs_I][:, inputs_I]).sum(dim=0)
    return scores_NK


class _Factors:
    """F[a, v] as `inputs_KK` and G[b, u], with u first, as `outputs_NN`.

    For a pair that is linked, D counts the other end of its link, which is no inner node: one less. A node is no inner
    node of its own pair: the diagonal is 0. For absent pairs the diagonal is never met.
    """

    def __init__(self, a_NK: Tensor, a_KN: Tensor, kind: str, *, linked: bool) -> None:
        self.inputs_KK = _factor(a_KN @ a_NK, kind, linked)
        self.outputs_NN = _factor(a_NK @ a_KN, kind, linked).T.contiguous()


def _factor(common: Tensor, kind: str, linked: bool) -> Tensor:
    """The factor of an inner node (row) for an end node (column), from the common neighbours of the two."""
    degree = common.diagonal().clone()
    inside = common - 1 if linked else common
    external = (degree[:, None] - 1 - inside).clamp_(min=0)
    factor = external.add_(1).rsqrt_()
    if kind == "CH2_L3p":
        factor *= inside.add(1).clamp_(min=0).sqrt_()
    if linked:
        factor.fill_diagonal_(0)
    return factor
