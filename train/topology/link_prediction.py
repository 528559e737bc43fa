"""Cannistraci-Hebb link prediction on a bipartite graph: gradient-free scores for links that are absent.

Legend: N out_features, K in_features; A is the mask as 0/1; B rows of a block; R nodes of one side, C of the other.

The node-based scores are four matrix products, S(A) A + (S(A^T) A^T)^T with D = A A^T inside each S. On the CPU the
native library forms them, by links at low density and by pairs of nodes otherwise; on other devices, and on processors
without AVX-512, they are dense products in blocks of rows, so that S never leaves the cache. All agree to 1e-5.
"""

import torch
from torch import Tensor

from ...artifacts import InputError
from ..native.link_scores import native_scores
from ..threads import all_threads, native_threads
from .path_prediction import path_scores

NODE_SCORES = ("CH2_L3n", "CH3_L3n")
PATH_SCORES = ("CH2_L3p", "CH3_L3p")
LINK_SCORES = NODE_SCORES + PATH_SCORES

_BLOCK_ROWS = 256


def link_scores(mask: Tensor, kind: str) -> Tensor:
    """Cannistraci-Hebb scores of links (arXiv 2501.19107; ICLR 2024, openreview iayEcORsGd).

    Node-based, CH2-L3n and CH3-L3n: with common neighbours D = A A^T, degrees d and external degrees E[i, j] =
    max((d_j - D[i, j]) [D[i, j] != 0], 1) - 1, the similarity is S = (D + [D != 0]) / (E + 1) for CH2 and [D != 0] /
    (E + 1) for CH3, and the scores are S(A) A + (S(A^T) A^T)^T.

    Path-based, CH2-L3p and CH3-L3p: see `path_prediction`; their cost grows with the number of links.

    Args:
        mask: bool [N, K].
        kind: one of `LINK_SCORES`.

    Returns:
        float32 [N, K], existing links included; zero where no path of length 3 joins the two nodes.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in LINK_SCORES:
        raise InputError(f"regrowth.score '{kind}' is none of {', '.join(LINK_SCORES)}")
    if mask.device.type == "cpu" and kind in NODE_SCORES:
        found = native_scores(mask.numpy(), ch3=kind == "CH3_L3n", threads=native_threads())
        if found is not None:
            return torch.from_numpy(found)
    with all_threads():
        return path_scores(mask, kind) if kind in PATH_SCORES else _float_scores(mask, kind)


def _float_scores(mask_NK: Tensor, kind: str) -> Tensor:
    a_NK = mask_NK.float()
    a_KN = a_NK.T.contiguous()
    scores_NK = torch.zeros_like(a_NK)
    for rows, scores_BK in _side(a_NK, a_KN, kind):
        scores_NK[rows] += scores_BK
    for columns, scores_BN in _side(a_KN, a_NK, kind):
        scores_NK[:, columns] += scores_BN.T
    return scores_NK


def _side(a_RC: Tensor, a_CR: Tensor, kind: str) -> list[tuple[slice, Tensor]]:
    """S(A) A in blocks of rows."""
    degree_R = a_RC.sum(dim=1)
    return [(rows, _similarity(a_RC[rows] @ a_CR, degree_R, kind) @ a_RC) for rows in _blocks(len(a_RC))]


def _blocks(rows: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK_ROWS, rows)) for start in range(0, rows, _BLOCK_ROWS)]


def _similarity(common_BR: Tensor, degree_R: Tensor, kind: str) -> Tensor:
    """S of a block of rows. Counts below 2^24 are exact in float32.

    [D != 0] may be left out of E, as the numerator is 0 where D is.
    """
    external_BR = (degree_R - common_BR).clamp_(min=1)  # E + 1
    connected_BR = common_BR.clamp(max=1)  # [D != 0]
    return (connected_BR.add_(common_BR) if kind == "CH2_L3n" else connected_BR).div_(external_BR)
