"""What drawing a token takes of a row of logits: by the native library, and by numpy where there is none.

The weight of a token is e^((logit - peak) / temperature) in float64, where no logit is above the peak.

Legend: V vocabulary, B blocks of `BLOCK` of it, N tokens that may matter.
"""

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import library_path

BLOCK = 256
"""So many weights are added up at a time where a token is drawn; `kSumBlock` of the library."""
NEAR = 1 << 14
"""So many tokens of a nucleus are written down at most; `kMostNear` of the library."""


def weigh(logits_N: NDArray[np.float32], peak: np.float32, temperature: float) -> NDArray[np.float64]:
    """The weights [N]."""
    library = _library(logits_N)
    if library is None:
        return _weights(logits_N, peak, temperature)
    weights_N = np.empty(logits_N.shape)
    library.hebbline_weigh(logits_N.ctypes.data, logits_N.size, float(peak), temperature, weights_N.ctypes.data)
    return weights_N


def add_up(
    logits_V: NDArray[np.float32], peak: np.float32, temperature: float, edge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each `BLOCK` neighbours, the last ones perhaps fewer, the sum of the weights, and of those whose logits reach
    the edge [B].
    """
    library = _library(logits_V)
    if library is None:
        weights_V = _weights(logits_V, peak, temperature)
        return _sums(weights_V), _sums(np.where(logits_V >= edge, weights_V, 0.0))
    sums_2B = np.empty((2, -(-logits_V.size // BLOCK)))
    row = logits_V.ctypes.data, logits_V.size, float(peak), temperature
    sums = sums_2B.ctypes.data
    library.hebbline_add_up(*row, edge, sums, sums + sums_2B.strides[0])
    return sums_2B[0], sums_2B[1]


def find(logits_V: NDArray[np.float32], low: float, high: float, most: int) -> NDArray[np.intp] | None:
    """The tokens whose logits are from `low` to `high`, in order; None where they are more than `most`."""
    library = _library(logits_V)
    if library is None:
        ids_N = np.flatnonzero((logits_V >= low) & (logits_V <= high))
        return ids_N if len(ids_N) <= most else None
    ids_N = np.empty(most, np.int64)
    count = library.hebbline_find(logits_V.ctypes.data, logits_V.size, low, high, most, ids_N.ctypes.data)
    return ids_N[:count] if count <= most else None


def keep_largest(weights_N: NDArray[np.float64], before: float, target: float) -> NDArray[np.bool_]:
    """Which weights are of the largest, among equal ones of the first, that `before`, which is less than the target,
    needs to reach it together with them [N]; all where they do not suffice.
    """
    library = _library(weights_N, np.float64)
    if library is None:
        return _keep_largest(weights_N, before, target)
    kept_N = np.empty(len(weights_N), np.bool_)
    library.hebbline_keep_largest(weights_N.ctypes.data, weights_N.size, before, target, kept_N.ctypes.data)
    return kept_N


@dataclass(frozen=True)
class Nucleus:
    """The fewest of the likeliest tokens that have a share of the weight.

    Attributes:
        ids_N: tokens of it, in order: all of them, or those whose logits are not larger than `above`.
        weights_N: of these.
        above: all tokens whose logits are larger are of it; None: `ids_N` has all.
        sums_B: of each block, the sum of its weights, but for rounding; None: `ids_N` has all.
    """

    ids_N: NDArray[np.intp]
    weights_N: NDArray[np.float64]
    above: float | None = None
    sums_B: NDArray[np.float64] | None = None


def nucleus(logits_V: NDArray[np.float32], peak: np.float32, temperature: float, top_p: float) -> Nucleus | None:
    """The nucleus of logits [V], found without sorting them; None where the library does not find it: in vocabularies
    of up to 4,096 tokens, and where more than `NEAR` are near its edge.

    Equal logits at its edge are kept by the lowest token id.
    """
    library = _library(logits_V)
    if library is None:
        return None
    found, above, sums_B = ctypes.c_int64(), ctypes.c_float(), np.empty(-(-logits_V.size // BLOCK))
    ids_N, weights_N = np.empty(NEAR, np.int64), np.empty(NEAR)
    row = logits_V.ctypes.data, logits_V.size, float(peak), temperature, top_p
    tokens = ctypes.byref(found), ids_N.ctypes.data, weights_N.ctypes.data
    kind = library.hebbline_nucleus(*row, *tokens, ctypes.byref(above), sums_B.ctypes.data)
    if kind == 0:
        return None
    tokens_N = ids_N[: found.value], weights_N[: found.value]
    return Nucleus(*tokens_N) if kind == 1 else Nucleus(*tokens_N, above.value, sums_B)


def _weights(logits_N: NDArray[np.float32], peak: np.float32, temperature: float) -> NDArray[np.float64]:
    weights_N = logits_N.astype(np.float64)
    weights_N -= float(peak)
    with np.errstate(over="ignore"):  # a logit that is so far below the peak has the weight 0
        weights_N /= temperature
    return np.exp(weights_N, out=weights_N)


def _sums(weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = len(weights_N) // BLOCK * BLOCK
    sums_B = np.einsum("bi->b", weights_N[:whole].reshape(-1, BLOCK))
    return np.append(sums_B, weights_N[whole:].sum()) if whole < len(weights_N) else sums_B


def _keep_largest(weights_N: NDArray[np.float64], before: float, target: float) -> NDArray[np.bool_]:
    ordered = np.sort(weights_N)[::-1]
    count = min(int(np.searchsorted(before + np.cumsum(ordered), target)) + 1, len(ordered))
    edge = ordered[count - 1]
    kept_N = weights_N > edge
    kept_N[np.flatnonzero(weights_N == edge)[: count - int(np.count_nonzero(kept_N))]] = True
    return kept_N


def _library(array: NDArray, dtype: type[np.floating] = np.float32) -> ctypes.CDLL | None:
    """The native library, for an array that it can read as it is."""
    return _open() if array.flags.c_contiguous and array.dtype == dtype else None


@functools.cache
def _open() -> ctypes.CDLL | None:
    from ..artifacts.errors import InputError

    try:
        library = ctypes.CDLL(str(library_path()))
    except (InputError, OSError):
        return None
    if not hasattr(library, "hebbline_nucleus"):
        return None
    pointer, count, double, single = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_float
    library.hebbline_weigh.argtypes = [pointer, count, double, double, pointer]
    library.hebbline_weigh.restype = None
    library.hebbline_add_up.argtypes = [pointer, count, double, double, single, pointer, pointer]
    library.hebbline_add_up.restype = None
    library.hebbline_find.argtypes = [pointer, count, single, single, count, pointer]
    library.hebbline_find.restype = count
    library.hebbline_keep_largest.argtypes = [pointer, count, double, double, pointer]
    library.hebbline_keep_largest.restype = None
    library.hebbline_nucleus.argtypes = [pointer, count, double, double, double, *[pointer] * 5]
    library.hebbline_nucleus.restype = ctypes.c_int32
    return library
