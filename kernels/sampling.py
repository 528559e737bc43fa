"""What drawing a token takes of a row of logits: by the native library, and by numpy where there is none.

Legend: V vocabulary, N tokens that may matter.
"""

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from . import library_path


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


def _library(array: NDArray) -> ctypes.CDLL | None:
    """The native library, for an array that it can read as it is."""
    return _open() if array.flags.c_contiguous and array.dtype == np.float32 else None


@functools.cache
def _open() -> ctypes.CDLL | None:
    from ..artifacts.errors import InputError

    try:
        library = ctypes.CDLL(str(library_path()))
    except (InputError, OSError):
        return None
    if not hasattr(library, "hebbline_select"):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.hebbline_weigh.argtypes = [pointer, count, ctypes.c_float, ctypes.c_float, pointer]
    library.hebbline_weigh.restype = ctypes.c_double
    library.hebbline_weigh_exactly.argtypes = [pointer, count, ctypes.c_double, ctypes.c_double, pointer]
    library.hebbline_weigh_exactly.restype = None
    library.hebbline_select.argtypes = [pointer, pointer, count, ctypes.c_float, count, pointer, pointer]
    library.hebbline_select.restype = count
    return library
