"""Node-based scores of absent links, by the native library.

Legend: N out_features, K in_features.
"""

import ctypes
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import library_path

Way = Literal["cheaper", "links", "pairs"]
_WAYS: tuple[Way, ...] = ("cheaper", "links", "pairs")


def native_scores(
    mask_NK: NDArray[np.bool_], *, ch3: bool, threads: int, way: Way = "cheaper"
) -> NDArray[np.float32] | None:
    """CH2-L3n or CH3-L3n (arXiv 2501.19107), the same bits on any number of threads.

    Args:
        mask_NK: bool [N, K].
        ch3: CH3-L3n instead of CH2-L3n.
        threads: to use.
        way: "links" adds over the links of nodes that have a neighbour in common, which is fast where they are few;
            "pairs" goes over all pairs of nodes, which takes AVX-512F; "cheaper" chooses by the density.

    Returns:
        float32 [N, K]; None where only pairs would be fast, and this processor lacks them or HEBBLINE_ISA names less.

    Raises:
        InputError: the native library is missing.
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    mask_NK = np.ascontiguousarray(mask_NK, dtype=np.bool_)
    scores_NK = np.empty(mask_NK.shape, np.float32)
    done = _function()(mask_NK.ctypes.data, *mask_NK.shape, ch3, _WAYS.index(way), threads, scores_NK.ctypes.data)
    if done < 0:
        raise MemoryError(
            f"scores of a {mask_NK.shape[0]} x {mask_NK.shape[1]} mask: memory or threads ran out, "
            "or HEBBLINE_ISA names what is not there"
        )
    return scores_NK if done else None


@cache
def _function() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(str(library_path())).hebbline_link_scores
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    function.restype = ctypes.c_int
    return function
