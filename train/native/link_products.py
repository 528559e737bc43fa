"""Products over the links of a layer, forward and backward, by the native library: float32 on the CPU.

Legend: N out_features, K in_features, Z links, T tokens.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import library_path

_FEW_TOKENS = 64
"""Up to so many, a layer puts out features first: a tile of the kernels is then the output itself."""


@dataclass(frozen=True)
class LinkIndex:
    """Where the links of a matrix [N, K] are: int32, on the CPU.

    Args:
        shape: (N, K).
        row_starts: [N + 1], where each row's links begin in `columns`.
        columns: [Z], row by row, rising in each row.
        column_starts: [K + 1], where each column's links begin in `rows`.
        rows: [Z], column by column, rising in each column.
        places: [Z], of each link by columns, its place by rows.
    """

    shape: tuple[int, int]
    row_starts: Tensor
    columns: Tensor
    column_starts: Tensor
    rows: Tensor
    places: Tensor


def is_native(*tensors: Tensor | None) -> bool:
    """Whether the library computes with these: float32 on the CPU."""
    return all(x is None or (x.dtype == torch.float32 and x.device.type == "cpu") for x in tensors)


def forward(index: LinkIndex, values_Z: Tensor, bias_N: Tensor | None, x_TK: Tensor) -> Tensor:
    """x W^T + bias: [T, N], features first in memory where x is so or tokens are few.

    Raises:
        InputError: the native library is missing.
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    rows, columns = index.shape
    x_TK, x_first = _laid_out(x_TK)
    tokens = len(x_TK)
    y_first = x_first or tokens <= _FEW_TOKENS
    y_TN = x_TK.new_empty(rows, tokens).T if y_first else x_TK.new_empty(tokens, rows)
    done = _functions().hebbline_links_forward(
        rows,
        columns,
        index.row_starts.data_ptr(),
        index.columns.data_ptr(),
        values_Z.data_ptr(),
        _address(bias_N),
        x_TK.data_ptr(),
        x_first,
        tokens,
        y_TN.data_ptr(),
        y_first,
        torch.get_num_threads(),
    )
    _check(done)
    return y_TN


def backward(
    index: LinkIndex, values_Z: Tensor, x_TK: Tensor, grad_TN: Tensor, *, wants: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x [T, K], which lies in memory as x does, of the links [Z] and of the bias [N].

    `wants` says which of them; the others are None. The same bits on any number of threads.

    Raises:
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    rows, columns = index.shape
    x_TK, x_first = _laid_out(x_TK)
    grad_TN, y_first = _laid_out(grad_TN)
    grad_x_TK = torch.empty_like(x_TK) if wants[0] else None
    grad_Z = torch.empty_like(values_Z) if wants[1] else None
    grad_N = values_Z.new_empty(rows) if wants[2] else None
    done = _functions().hebbline_links_backward(
        rows,
        columns,
        index.row_starts.data_ptr(),
        index.columns.data_ptr(),
        index.column_starts.data_ptr(),
        index.rows.data_ptr(),
        index.places.data_ptr(),
        values_Z.data_ptr(),
        x_TK.data_ptr(),
        x_first,
        grad_TN.data_ptr(),
        y_first,
        len(x_TK),
        _address(grad_x_TK),
        _address(grad_Z),
        _address(grad_N),
        torch.get_num_threads(),
    )
    _check(done)
    return grad_x_TK, grad_Z, grad_N


def _laid_out(x_TK: Tensor) -> tuple[Tensor, bool]:
    """A tensor that lies token by token or feature by feature, and whether it is the latter."""
    if x_TK.is_contiguous():
        return x_TK, False
    return (x_TK, True) if x_TK.T.is_contiguous() else (x_TK.contiguous(), False)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(done: int) -> None:
    if done < 0:
        raise MemoryError("products of links: memory or threads ran out, or HEBBLINE_ISA names what is not there")


@cache
def _functions() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    forward, backward = library.hebbline_links_forward, library.hebbline_links_backward
    forward.argtypes = [number, number, *[pointer] * 5, flag, number, pointer, flag, flag]
    backward.argtypes = [number, number, *[pointer] * 7, flag, pointer, flag, number, *[pointer] * 3, flag]
    forward.restype = backward.restype = ctypes.c_int
    return library
