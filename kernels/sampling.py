"""What drawing a token takes of a row of logits: by the native library, and by numpy where there is none.

Legend: V vocabulary, N tokens that may matter, B blocks of them, M tokens near an edge.
"""

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from . import library_path

BLOCK = 256
"""So many weights are added up at a time where a token is drawn; `kSumBlock` of the library."""


def weigh(logits_V: NDArray[np.float32], peak: np.float32, inverse: np.float32) -> tuple[NDArray[np.float32], float]:
    """The weights e^((logits - peak) * inverse) in float32, and their sum; no logit is above the peak."""
    weights_V = np.empty(logits_V.shape, np.float32)
    library = _library(logits_V)
    if library is not None:
        arguments = (logits_V.ctypes.data, logits_V.size, float(peak), float(inverse), weights_V.ctypes.data)
        return weights_V, library.hebbline_weigh(*arguments)
    np.subtract(logits_V, peak, out=weights_V)
    weights_V *= inverse
    np.exp(weights_V, out=weights_V)
    return weights_V, float(weights_V.sum())


def weigh_exactly(logits_N: NDArray[np.float32], peak: np.float32, temperature: float) -> NDArray[np.float64]:
    """The weights e^((logits - peak) / temperature) in float64; no logit is above the peak."""
    library = _library(logits_N)
    if library is not None:
        weights_N = np.empty(logits_N.shape)
        arguments = (logits_N.ctypes.data, logits_N.size, float(peak), temperature, weights_N.ctypes.data)
        library.hebbline_weigh_exactly(*arguments)
        return weights_N
    weights_N = logits_N.astype(np.float64)
    weights_N -= float(peak)
    weights_N /= temperature
    return np.exp(weights_N, out=weights_N)


def select(
    logits_V: NDArray[np.float32], weights_V: NDArray[np.float32], edge: np.float32, most: int
) -> tuple[NDArray[np.intp] | None, float]:
    """The tokens whose logits reach the edge, in order, or None where they are more than `most`; the others' weight."""
    library = _library(logits_V)
    if library is not None:
        ids_N, rest = np.empty(most, np.int64), ctypes.c_double()
        pointers = logits_V.ctypes.data, weights_V.ctypes.data, logits_V.size, float(edge), most, ids_N.ctypes.data
        count = library.hebbline_select(*pointers, ctypes.byref(rest))
        return (ids_N[:count] if count <= most else None), rest.value
    reaches_V = logits_V >= edge
    if np.count_nonzero(reaches_V) > most:
        return None, 0.0
    ids_N = np.flatnonzero(reaches_V)
    return ids_N, float(np.sum(weights_V, where=~reaches_V, dtype=np.float64))


def add_up(weights_N: NDArray[np.float64], least: float = 0.0) -> NDArray[np.float64]:
    """Of each `BLOCK` neighbours, the last ones perhaps fewer, the sum of the weights that are at least `least` [B]."""
    sums_B = np.empty(-(-len(weights_N) // BLOCK))
    library = _library(weights_N, np.float64)
    if library is not None:
        library.hebbline_add_up(weights_N.ctypes.data, weights_N.size, least, sums_B.ctypes.data)
        return sums_B
    return _sums(np.where(weights_N >= least, weights_N, 0.0))


def split(
    weights_N: NDArray[np.float64], low: float, high: float, expected: int = 4096
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Which weights are above `high` [N], the sums of these by blocks [B], and the tokens from `low` to `high` [M].

    It takes twice as long where these are more than `expected`: memory for all of a vocabulary would cost more.
    """
    kept_N = np.empty(len(weights_N), np.bool_)
    library = _library(weights_N, np.float64)
    if library is not None:
        sums_B, ids_M = np.empty(-(-len(weights_N) // BLOCK)), np.empty(expected, np.int64)
        pointers = kept_N.ctypes.data, sums_B.ctypes.data, ids_M.ctypes.data
        count = library.hebbline_split(weights_N.ctypes.data, weights_N.size, low, high, expected, *pointers)
        return (kept_N, sums_B, ids_M[:count]) if count <= expected else split(weights_N, low, high, count)
    np.greater(weights_N, high, out=kept_N)
    return kept_N, _sums(np.where(kept_N, weights_N, 0.0)), np.flatnonzero((weights_N >= low) & ~kept_N)


def _sums(weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = len(weights_N) // BLOCK * BLOCK
    sums_B = np.einsum("bi->b", weights_N[:whole].reshape(-1, BLOCK))
    return np.append(sums_B, weights_N[whole:].sum()) if whole < len(weights_N) else sums_B


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
    if not hasattr(library, "hebbline_split"):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.hebbline_weigh.argtypes = [pointer, count, ctypes.c_float, ctypes.c_float, pointer]
    library.hebbline_weigh.restype = ctypes.c_double
    library.hebbline_weigh_exactly.argtypes = [pointer, count, ctypes.c_double, ctypes.c_double, pointer]
    library.hebbline_weigh_exactly.restype = None
    library.hebbline_select.argtypes = [pointer, pointer, count, ctypes.c_float, count, pointer, pointer]
    library.hebbline_select.restype = count
    library.hebbline_add_up.argtypes = [pointer, count, ctypes.c_double, pointer]
    library.hebbline_add_up.restype = None
    bounds = [ctypes.c_double, ctypes.c_double]
    library.hebbline_split.argtypes = [pointer, count, *bounds, count, pointer, pointer, pointer]
    library.hebbline_split.restype = count
    return library
