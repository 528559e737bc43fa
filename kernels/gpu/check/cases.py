"""The layers that are checked and timed, and the comparison of the kernels with float64.

Legend: T tokens, N out_features, K in_features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .. import ops
from ..packing import FORMS, GROUP, PACKERS, ROUNDING_PACKERS, SLOTS, GpuWeight
from ..unpacking import unpack_words

DENSITIES = (0.05, 0.1, 0.3, 0.5)
BLOCK = 32
PARITY_SHAPES = ((1, 1, 1), (1, 41, 300), (4, 23, 1501), (9, 17, 257), (33, 70, 130), (130, 513, 1031))
VALUE_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-7}
"""Relative error that rounding the result may add. (A GPU rounds bfloat16 to nearest, which is half of this.)"""
_SUM_ROUNDING = 1e-6
"""Error of the float32 sum, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class KernelParity:
    """One comparison: the kernel's form, value type, sizes, and its largest error over the allowed one (<= 1 passes).

    `error` is NaN or infinite where the kernel's result is; `failure` is why there is no result.
    """

    form: str
    values: str
    tokens: int
    out_features: int
    in_features: int
    error: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every element is within its bound."""
        return self.error <= 1.0

    @property
    def mismatch(self) -> str:
        """What is wrong, in words."""
        found = self.failure or f"error {self.error:.2g} of the allowed one"
        return f"kernel {self.form} in {self.values} on {self.tokens}x{self.out_features}x{self.in_features}: {found}"


def check_kernels(device: str, shapes: Sequence[tuple[int, int, int]] = PARITY_SHAPES) -> Iterator[KernelParity]:
    """Compare every kernel with float64 on layers [T, N, K] with empty rows and odd sizes."""
    for values in VALUE_TYPES:
        for tokens, out_features, in_features in shapes:
            rng = np.random.default_rng(out_features)
            mask_NK = rng.random((out_features, in_features)) < 0.3
            mask_NK[out_features // 2] = False
            weight_NK = random_weight(rng, mask_NK, values)
            x_TK = _rounded(rng.standard_normal((tokens, in_features)), values)
            for form in FORMS:
                error, failure = _error_or_failure(x_TK, pack(form, weight_NK, mask_NK), values, device)
                yield KernelParity(form, values, tokens, out_features, in_features, error, failure)


def pack(form: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """A weight in any form, the rounding ones included."""
    return (PACKERS | ROUNDING_PACKERS)[form](weight_NK, mask_NK)


def random_weight(rng: np.random.Generator, mask_NK: NDArray[np.bool_], values: str) -> NDArray[np.float32]:
    """Normal weights on the links, zeros elsewhere, in float32 but exact in the value type."""
    return _rounded(np.where(mask_NK, rng.standard_normal(mask_NK.shape, np.float32), np.float32(0)), values)


def timed_mask(form: str, density: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of the kind that a form is meant for: whole blocks for `block`, at most 2 of 4 for `nm24`, else random.

    A 2:4 mask can hold half of the links at most, which a density above 0.5 is cut to.
    """
    rng = np.random.default_rng(0)
    rows, columns = shape
    if form == "block":
        active = rng.random((-(-rows // BLOCK), -(-columns // BLOCK))) < density
        return np.kron(active, np.ones((BLOCK, BLOCK), bool))[:rows, :columns]
    if form != "nm24":
        return rng.random(shape, np.float32) < density
    groups = rng.random((rows, -(-columns // GROUP), GROUP), np.float32)
    legal = groups <= np.sort(groups, axis=2)[..., SLOTS - 1 : SLOTS]
    kept = rng.random(groups.shape, np.float32) < density * GROUP / SLOTS
    return (legal & kept).reshape(rows, -1)[:, :columns]


def _rounded(array: NDArray, values: str) -> NDArray[np.float32]:
    """In float32, rounded to a value type; by torch, as NumPy has no bfloat16."""
    return torch.from_numpy(array).to(VALUE_TYPES[values]).float().numpy()


def _error_or_failure(x_TK: NDArray, packed: GpuWeight, values: str, device: str) -> tuple[float, str]:
    try:
        return _relative_error(x_TK, packed, values, device), ""
    except Exception as error:  # the compiler's and the driver's, which share no base: they are what is looked for
        return float("inf"), first_line(error)


def first_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _relative_error(x_TK: NDArray, packed: GpuWeight, values: str, device: str) -> float:
    """The largest error of an element over what rounding allows it."""
    kind = VALUE_TYPES[values]
    x = torch.from_numpy(x_TK).to(device, kind)
    actual = ops.linear(x, packed, ops.to_torch(packed, device, kind)).to(torch.float64).cpu().numpy()
    held_NK = unpack_words(packed.form, packed.out_features, packed.in_features, packed.tensors)
    x64, w64 = x_TK.astype(np.float64), held_NK.astype(np.float64)
    expected = x64 @ w64.T
    allowed = _ROUNDING[values] * np.abs(expected) + _SUM_ROUNDING * (np.abs(x64) @ np.abs(w64).T) + 1e-7
    return float((np.abs(actual - expected) / allowed).max())
