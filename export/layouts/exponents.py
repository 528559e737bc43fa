"""Exponents in few bits: which exponents of a layer's weights get a code, and what that takes in bytes.

Legend: Z links, E of them stored as they are, C = Z - E coded, b bits of a code, R bytes of sign and fraction.

The exponents of a layer's weights hold few bits of information: Hershcovitch et al., "ZipNN: Lossless Compression for
AI Models", arXiv 2411.05239; Zhang et al., "70% Size, 100% Accuracy" (DFloat11), arXiv 2504.11651. Those codes are
Huffman's; one of a single width is decoded without a search.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SIGN_BITS, _EXPONENT_BITS = 1, 8
_EXPONENTS = 2**_EXPONENT_BITS
_WIDTHS = range(1, 5)
"""Bits of a code that are tried: nearly all weights of a layer have one of 15 exponents."""


@dataclass(frozen=True)
class FloatBits:
    """The bits of float32 or bfloat16: sign, 8 of exponent, and the fraction below.

    Sign and fraction together are whole bytes: 3 of float32, 1 of bfloat16.
    """

    dtype: np.dtype

    @property
    def fraction_bits(self) -> int:
        """Those of the fraction."""
        return 8 * self.dtype.itemsize - _SIGN_BITS - _EXPONENT_BITS

    @property
    def fraction_bytes(self) -> int:
        """R, of sign and fraction."""
        return self.dtype.itemsize - 1

    def bits(self, values: NDArray) -> NDArray[np.integer]:
        """The bits of values, low ones first."""
        return values.view(np.dtype(f"<u{self.dtype.itemsize}")).astype(np.uint32)

    def values(self, bits: NDArray[np.integer]) -> NDArray:
        """The values of these bits."""
        return bits.astype(f"<u{self.dtype.itemsize}").view(self.dtype)

    def exponents(self, values: NDArray) -> NDArray[np.uint8]:
        """The exponent of each value, biased by 127."""
        return (self.bits(values) >> self.fraction_bits & 0xFF).astype(np.uint8)

    def powers(self, exponents: NDArray[np.uint8]) -> NDArray:
        """The powers of two that have these exponents."""
        return self.values(exponents.astype(np.uint32) << self.fraction_bits)

    def split(self, values_C: NDArray) -> NDArray[np.uint8]:
        """Sign and fraction of each value, [C, R]: the lowest byte first, the highest bit of the last is the sign."""
        bits_C = self.bits(values_C)
        sign_C = bits_C >> (self.fraction_bits + _EXPONENT_BITS) << self.fraction_bits
        fraction_C = bits_C & ((1 << self.fraction_bits) - 1)
        bytes_C4 = (sign_C | fraction_C).astype("<u4").view(np.uint8).reshape(-1, 4)
        return np.ascontiguousarray(bytes_C4[:, : self.fraction_bytes])

    def join(self, fractions_CR: NDArray[np.uint8], exponents_C: NDArray[np.uint8]) -> NDArray:
        """The values of these signs, fractions and exponents."""
        bytes_C4 = np.zeros((len(fractions_CR), 4), np.uint8)
        bytes_C4[:, : self.fraction_bytes] = fractions_CR
        rest_C = bytes_C4.view("<u4").reshape(-1).astype(np.uint32)
        sign_C = rest_C >> self.fraction_bits << (self.fraction_bits + _EXPONENT_BITS)
        fraction_C = rest_C & ((1 << self.fraction_bits) - 1)
        return self.values(sign_C | exponents_C.astype(np.uint32) << self.fraction_bits | fraction_C)


@dataclass(frozen=True)
class ExponentCode:
    """The exponents that have a code of so many bits, ascending; and how many links of a layer are coded or not."""

    bits: int
    exponents: NDArray[np.uint8]
    coded: int
    left: int

    def packed_bytes(self, floats: FloatBits) -> int:
        """Of codes, powers, fractions, and the values without a code."""
        whole = (self.left + len(self.exponents)) * floats.dtype.itemsize
        return whole + self.bits * -(-(self.coded + self.left) // 8) + self.coded * floats.fraction_bytes


def smallest_code(exponents_Z: NDArray[np.uint8], floats: FloatBits) -> ExponentCode:
    """The code of the fewest bytes: of each width, the most common exponents of normal numbers have one."""
    counts = np.bincount(exponents_Z, minlength=_EXPONENTS)
    counts[[0, -1]] = 0  # zeros and subnormal numbers; infinities and NaN
    by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    codes = []
    for bits in _WIDTHS:
        exponents = np.sort(by_count[: 2**bits - 1])
        coded = int(counts[exponents].sum())
        codes.append(ExponentCode(bits, exponents.astype(np.uint8), coded, len(exponents_Z) - coded))
    return min(codes, key=lambda code: code.packed_bytes(floats))


def exponents_of_powers(powers: NDArray, floats: FloatBits) -> NDArray[np.uint8]:
    """The exponents of ascending powers of two; raises ValueError where they are not."""
    exponents = floats.exponents(powers)
    normal = (exponents > 0) & (exponents < _EXPONENTS - 1)
    if not normal.all() or (floats.bits(floats.powers(exponents)) != floats.bits(powers)).any():
        raise ValueError("powers hold what is not a power of two")
    if (np.diff(exponents.astype(np.int64)) <= 0).any():
        raise ValueError("powers do not ascend")
    return exponents
