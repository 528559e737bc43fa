"""Weighted sampling without replacement by the native library: keys of a race, and the smallest of them."""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from . import library_path


def race_keys(
    scores: NDArray[np.float32],
    excluded: NDArray[np.bool_] | None,
    *,
    seed: int,
    place: int,
    temperature: float,
    threads: int,
) -> NDArray[np.float32]:
    """Exp(1) / score^temperature, in logarithms where `temperature` is not 1: the same bits on any number of threads.

    Args:
        scores: of any shape.
        excluded: like `scores`, entries that are not to be drawn.
        seed: of the random numbers, from 0 to 2^64.
        place: of the first number; entries take half a number each.
        temperature: the exponent.
        threads: to use.

    Returns:
        Like `scores`; infinite where the score is not above 0 or the entry excluded.

    Raises:
        InputError: the native library is missing.
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    kept = None if excluded is None else np.ascontiguousarray(excluded, dtype=np.bool_)
    keys = np.empty_like(scores)
    excluded_at = None if kept is None else kept.ctypes.data
    race = _functions().hebbline_race_keys
    if race(scores.ctypes.data, excluded_at, scores.size, seed, place, temperature, threads, keys.ctypes.data) < 0:
        raise MemoryError(
            f"a draw from {scores.size} entries: memory or threads ran out, or HEBBLINE_ISA names what is not there"
        )
    return keys


def smallest(keys: NDArray[np.float32], count: int, *, threads: int) -> NDArray[np.bool_]:
    """The `count` smallest keys, of equal ones those that come first; never infinity or nan, so it may be fewer.

    Args:
        keys: of any shape.
        count: how many.
        threads: to use.

    Returns:
        bool like `keys`.

    Raises:
        InputError: the native library is missing.
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    keys = np.ascontiguousarray(keys, dtype=np.float32)
    taken = np.empty(keys.shape, np.bool_)
    if _functions().hebbline_smallest(keys.ctypes.data, keys.size, count, threads, taken.ctypes.data) < 0:
        raise MemoryError(
            f"the smallest of {keys.size} keys: memory or threads ran out, or HEBBLINE_ISA names what is not there"
        )
    return taken


@cache
def _functions() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, number, integer = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64
    race, smallest = library.hebbline_race_keys, library.hebbline_smallest
    race.argtypes = [pointer, pointer, integer, number, number, ctypes.c_float, ctypes.c_int, pointer]
    race.restype = ctypes.c_int
    smallest.argtypes = [pointer, integer, integer, ctypes.c_int, pointer]
    smallest.restype = integer
    return library
