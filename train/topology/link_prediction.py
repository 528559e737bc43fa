"""Cannistraci-Hebb link prediction on a bipartite graph: gradient-free scores for links that are absent.

Legend: N out_features, K in_features; A is the mask as 0/1; B rows of a block; R nodes of one side, C of the other;
D digits of a number.

The node-based scores are four matrix products, S(A) A + (S(A^T) A^T)^T with D = A A^T inside each S. They are formed
in one of three ways, which agree to 1e-5:

- at low density, products with A go over its links only (CSR);
- where the processor multiplies int8 with int32 sums (VNNI), D is a count of 0/1 products, exact in int8, and S is cut
  into three int8 digits, 24 bits under a scale a row: a product of digits is exact too, and four times as fast as one
  in float32. A block in which 24 bits are too few for some score takes float32;
- elsewhere in float32.

All work on blocks of rows, so that S never leaves the cache.
"""

import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...artifacts import InputError
from .path_prediction import path_scores

NODE_SCORES = ("CH2_L3n", "CH3_L3n")
PATH_SCORES = ("CH2_L3p", "CH3_L3p")
LINK_SCORES = NODE_SCORES + PATH_SCORES

_BLOCK_ROWS = 256
_SPARSE_BELOW = 0.07
_DIGIT = 256
_EXACT_DIGITS = 3
_TOLERANCE = 5e-6


def link_scores(mask: Tensor, kind: str, *, exact: bool = True) -> Tensor:
    """Cannistraci-Hebb scores of links (arXiv 2501.19107; ICLR 2024, openreview iayEcORsGd).

    Node-based, CH2-L3n and CH3-L3n: with common neighbours D = A A^T, degrees d and external degrees E[i, j] =
    max((d_j - D[i, j]) [D[i, j] != 0], 1) - 1, the similarity is S = (D + [D != 0]) / (E + 1) for CH2 and [D != 0] /
    (E + 1) for CH3, and the scores are S(A) A + (S(A^T) A^T)^T.

    Path-based, CH2-L3p and CH3-L3p: see `path_prediction`; their cost grows with the number of links.

    Args:
        mask: bool [N, K].
        kind: one of `LINK_SCORES`.
        exact: to 1e-5 of each score. Otherwise, where int8 is fast, S is cut into two digits: small scores are off by
            more, and a draw of one link in proportion to the scores is another with probability 1e-4 at most.

    Returns:
        float32 [N, K], existing links included; zero where no path of length 3 joins the two nodes.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in LINK_SCORES:
        raise InputError(f"regrowth.score '{kind}' is none of {', '.join(LINK_SCORES)}")
    if kind in PATH_SCORES:
        return path_scores(mask, kind)
    if mask.device.type == "cpu" and 0 < int(mask.count_nonzero()) < _SPARSE_BELOW * mask.numel():
        return _sparse_scores(mask, kind)
    if mask.device.type == "cpu" and _has_vnni():
        return _digit_scores(mask, kind, _EXACT_DIGITS if exact else _EXACT_DIGITS - 1)
    return _float_scores(mask, kind)


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


def _sparse_scores(mask_NK: Tensor, kind: str) -> Tensor:
    """The same with A in CSR: each of the four products costs links times the other size."""
    a_NK = mask_NK.float()
    a_KN = a_NK.T.contiguous()
    rows, columns = _csr(a_NK), _csr(a_KN)
    # CSR stands on the left: S A = (A^T S^T)^T.
    similar_NN = _similarity(rows @ a_KN, a_NK.sum(dim=1), kind)
    similar_KK = _similarity(columns @ a_NK, a_KN.sum(dim=1), kind)
    return (columns @ similar_NN.T.contiguous()).T + rows @ similar_KK.T.contiguous()


def _csr(a_RC: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return a_RC.to_sparse_csr()


def _digit_scores(mask_NK: Tensor, kind: str, digits: int) -> Tensor:
    a_NK = mask_NK.to(torch.int8)
    a_KN = a_NK.T.contiguous()
    outputs, inputs = _Digits(a_NK, a_KN, digits), _Digits(a_KN, a_NK, digits)
    scores_NK = torch.zeros(mask_NK.shape)
    for rows in _blocks(a_NK.shape[0]):
        scores_NK[rows] += outputs.scores(rows, kind)
    for columns in _blocks(a_NK.shape[1]):
        scores_NK[:, columns] += inputs.scores(columns, kind).T
    return scores_NK


class _Digits:
    """S(A) A of one side, by int8 products, with S in so many digits."""

    def __init__(self, a_RC: Tensor, a_CR: Tensor, digits: int) -> None:
        self.digits = digits
        self.largest_code = _DIGIT**digits - 2 * _DIGIT ** (digits - 1)
        self.a_RC, self.a_CR = a_RC, a_CR
        self.links_RC = a_RC.float()
        self.degree_R = self.links_RC.sum(dim=1)
        self.shares_C = 1 / self.links_RC.sum(dim=0).clamp_(min=1)
        self.offset_C = (self.links_RC.sum(dim=0) * (_DIGIT // 2)).int()

    def scores(self, rows: slice, kind: str) -> Tensor:
        """float32 [B, C]: a block of rows."""
        similar_BR = _similarity(torch._int_mm(self.a_RC[rows], self.a_CR).float(), self.degree_R, kind)
        # A node's similarity to itself is far above the others and would use up the range. It acts on existing links
        # only.
        itself_B = similar_BR.diagonal(rows.start).clone()
        similar_BR.diagonal(rows.start).zero_()
        largest_B1 = similar_BR.amax(dim=1, keepdim=True)
        scores_BC = self._product(similar_BR, largest_B1)
        if self.digits == _EXACT_DIGITS and not self._is_exact(scores_BC, largest_B1, kind):
            scores_BC = similar_BR @ self.links_RC
        return scores_BC.addcmul_(itself_B[:, None], self.links_RC[rows])

    def _is_exact(self, scores_BC: Tensor, largest_B1: Tensor, kind: str) -> bool:
        """Whether rounding to codes changed no score by more than `_TOLERANCE` of itself.

        A score sums as many entries of S as its node has links, each rounded by half a step of its row at most.
        """
        error_B1 = largest_B1 * (0.5 / self.largest_code)
        smallest_entry = (2 if kind == "CH2_L3n" else 1) / max(1.0, float(self.degree_R.max()))
        if float(error_B1.max()) <= _TOLERANCE * smallest_entry:
            return True
        mean_BC = (scores_BC * self.shares_C).masked_fill_(scores_BC == 0, torch.inf)
        return bool((error_B1 <= _TOLERANCE * mean_BC.amin(dim=1, keepdim=True)).all())

    def _product(self, similar_BR: Tensor, largest_B1: Tensor) -> Tensor:
        """S A by an int8 product a digit.

        S is rounded to codes of a row's own step. A code less half of their range is a number in digits of [-128, 127];
        in three, 65536 h + 256 m + l.
        """
        step_B1 = largest_B1.clamp(min=1e-30).div_(self.largest_code)
        codes_BR = similar_BR.mul(1 / step_B1).round_().sub_(_DIGIT**self.digits // 2).int()
        digits_DBR = torch.empty(self.digits, *codes_BR.shape, dtype=torch.int8)
        for place in reversed(range(self.digits)):
            digits_DBR[place].copy_(codes_BR)  # the low byte, signed
            if place:
                codes_BR.add_(_DIGIT // 2).bitwise_right_shift_(8)
        high_BC, *middle, low_BC = torch._int_mm(digits_DBR.flatten(0, 1), self.a_RC).view(
            self.digits, len(step_B1), -1
        )
        for middle_BC in middle:
            low_BC.add_(middle_BC, alpha=_DIGIT)
        unit = float(_DIGIT ** (self.digits - 1))
        return high_BC.add_(self.offset_C).float().mul_(unit).add_(low_BC).mul_(step_B1)


@cache
def _has_vnni() -> bool:
    """Whether int8 products with int32 sums run at four times the speed of float32."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and "avx512_vnni" in path.read_text()
