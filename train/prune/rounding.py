"""Rounding a pruned layer's links to integers with shared scales, so that links make good each other's rounding.

Legend: N out_features, K in_features, G groups of columns that share a scale, C columns of a strip.

Coordinate descent on |X (Q - W)^T|^2 (as QuantEase, arXiv 2309.01885), over the links alone. Scales are those that
`export --values` of the same name finds again in what comes out: the largest link of each group stands at the largest
integer, and no link is rounded to 0.
"""

import torch
from torch import Tensor

from ...artifacts.scales import INT4_LARGEST, INT8_LARGEST, group_count, group_width
from .config import Values

_LARGEST: dict[Values, int] = {"int8": INT8_LARGEST, "int4": INT4_LARGEST}
_SWEEPS = 3
_STRIP = 128


@torch.no_grad()
def round_links(weight_NK: Tensor, gram_KK: Tensor, mask_NK: Tensor, values: Values) -> Tensor:
    """The weights [N, K] whose links are integers times the scale of their row or group, and that change X W^T least.

    Args:
        weight_NK: float32, 0 off the mask.
        gram_KK: the Gram matrix of the inputs, damped.
        mask_NK: the links.
        values: "int8" or "int4"; "float32" leaves the weights as they are.
    """
    if values == "float32":
        return weight_NK
    largest = _LARGEST[values]
    scale_NK = _scales(weight_NK, mask_NK, values) / largest
    pinned_NK = weight_NK.abs() >= scale_NK * largest * (1 - 1e-6)
    quants_NK = _nearest(weight_NK, scale_NK, mask_NK, weight_NK, largest)
    for _ in range(_SWEEPS):
        quants_NK = _sweep(quants_NK, weight_NK, gram_KK, scale_NK, mask_NK & ~pinned_NK, largest)
    return quants_NK * scale_NK


def _scales(weight_NK: Tensor, mask_NK: Tensor, values: Values) -> Tensor:
    """The largest magnitude of each link's row or group, [N, K]."""
    rows, columns = weight_NK.shape
    groups = group_count((rows, columns), int(mask_NK.sum())) if values == "int4" else 1
    width = group_width(columns, groups)
    padded = torch.nn.functional.pad(weight_NK.abs(), (0, groups * width - columns))
    largest_NG = padded.reshape(rows, groups, width).amax(dim=2)
    return largest_NG.repeat_interleave(width, dim=1)[:, :columns]


def _nearest(wanted_NK: Tensor, scale_NK: Tensor, mask_NK: Tensor, sign_NK: Tensor, largest: int) -> Tensor:
    """The nearest integers other than 0 at the links; a link that is 0 takes the sign of `sign_NK`."""
    quants_NK = (wanted_NK / scale_NK.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(-largest, largest)
    signs_NK = torch.where(torch.where(wanted_NK == 0, sign_NK, wanted_NK) < 0, -1.0, 1.0)
    return torch.where(quants_NK == 0, signs_NK, quants_NK) * mask_NK


def _sweep(
    quants_NK: Tensor, weight_NK: Tensor, gram_KK: Tensor, scale_NK: Tensor, free_NK: Tensor, largest: int
) -> Tensor:
    """Each column in turn takes the integers that are best given all others."""
    quants_NK = quants_NK.clone()
    slope_NK = (quants_NK * scale_NK - weight_NK) @ gram_KK
    columns = weight_NK.shape[1]
    for start in range(0, columns, _STRIP):
        end = min(start + _STRIP, columns)
        moves_NC = torch.zeros_like(slope_NK[:, start:end])
        slope_NC = slope_NK[:, start:end]
        for column in range(start, end):
            scale_N, before_N = scale_NK[:, column], quants_NK[:, column]
            wanted_N = before_N * scale_N - slope_NC[:, column - start] / gram_KK[column, column]
            after_N = _nearest(wanted_N, scale_N, free_NK[:, column], before_N, largest)
            after_N = torch.where(free_NK[:, column], after_N, before_N)
            moves_NC[:, column - start] = (after_N - before_N) * scale_N
            slope_NC.addr_(moves_NC[:, column - start], gram_KK[column, start:end])
            quants_NK[:, column] = after_N
        slope_NK[:, end:] += moves_NC @ gram_KK[start:end, end:]
    return quants_NK
