"""The layers that are checked and timed, and the comparison of the kernels with float64.

Legend: T tokens, N out_features, K in_features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from ....kernels.gpu import ops
from ....kernels.gpu.packing import GROUP, PACKERS, SLOTS, GpuWeight

TOKENS = (1, 4, 64, 512)
DENSITIES = (0.05, 0.1, 0.3, 0.5)
TIMED_SHAPE = (4096, 4096)
BLOCK = 32
PARITY_SHAPES = ((1, 1, 1), (1, 41, 300), (9, 17, 257), (33, 70, 130), (130, 513, 1031))
_NUMPY_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-7}
"""Relative error that rounding the result may add. (A GPU rounds bfloat16 to nearest, which is half of this.)"""
_SUM_ROUNDING = 1e-6
"""Error of the float32 sum, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class KernelParity:
    """One comparison: the kernel's form, value type, sizes, and its largest error over the allowed one (<= 1 passes).

    `error` is NaN or infinite where the kernel's result is.
    """

    form: str
    values: str
    tokens: int
    out_features: int
    in_features: int
    error: float

    @property
    def passed(self) -> bool:
        """Whether every element is within its bound."""
        return self.error <= 1.0


def check_kernels(device: str, shapes: Sequence[tuple[int, int, int]] = PARITY_SHAPES) -> Iterator[KernelParity]:
    """Compare every kernel with float64 on layers [T, N, K] with empty rows and odd sizes."""
    for values in _NUMPY_TYPES:
        for tokens, out_features, in_features in shapes:
            rng = np.random.default_rng(out_features)
            mask_NK = rng.random((out_features, in_features)) < 0.3
            mask_NK[out_features // 2] = False
            weight_NK = random_weight(rng, mask_NK, values)
            x_TK = rng.standard_normal((tokens, in_features)).astype(_NUMPY_TYPES[values])
            for form, pack in PACKERS.items():
                error = _relative_error(x_TK, weight_NK, pack(weight_NK, mask_NK), _ROUNDING[values], device)
                yield KernelParity(form, values, tokens, out_features, in_features, error)


def random_weight(rng: np.random.Generator, mask_NK: NDArray[np.bool_], values: str) -> NDArray:
    """Normal weights on the links, zeros elsewhere."""
    return np.where(mask_NK, rng.standard_normal(mask_NK.shape), 0).astype(_NUMPY_TYPES[values])


def timed_mask(form: str, density: float, shape: tuple[int, int] = TIMED_SHAPE) -> NDArray[np.bool_]:
    """A mask of the kind that a form is meant for: whole blocks for `block`, at most 2 of 4 for `nm24`, else random.

    A 2:4 mask can hold half of the links at most, which a density above 0.5 is cut to.
    """
    rng = np.random.default_rng(0)
    rows, columns = shape
    if form == "block":
        active = rng.random((-(-rows // BLOCK), -(-columns // BLOCK))) < density
        return np.kron(active, np.ones((BLOCK, BLOCK), bool))[:rows, :columns]
    links = rng.random(shape)
    if form != "nm24":
        return links < density
    groups = links.reshape(rows, columns // GROUP, GROUP)
    legal = groups <= np.sort(groups, axis=2)[..., SLOTS - 1 : SLOTS]
    kept = rng.random(groups.shape) < density * GROUP / SLOTS
    return (legal & kept).reshape(shape)


def _relative_error(x_TK: NDArray, weight_NK: NDArray, packed: GpuWeight, rounding: float, device: str) -> float:
    """The largest error of an element over what rounding allows it."""
    x = ops.to_tensor(x_TK).to(device)
    actual = ops.linear(x, packed, ops.to_torch(packed, device)).to(torch.float64).cpu().numpy()
    x64, w64 = x_TK.astype(np.float64), weight_NK.astype(np.float64)
    expected = x64 @ w64.T
    allowed = rounding * np.abs(expected) + _SUM_ROUNDING * (np.abs(x64) @ np.abs(w64).T) + 1e-7
    return float((np.abs(actual - expected) / allowed).max())
