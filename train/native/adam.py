"""A step of Adam over a vector of links, each with its own count of steps, by the native library."""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import library_path


@dataclass(frozen=True)
class AdamTables:
    """What a step multiplies by, by the number of steps that a link has taken: float32 [oldest + 1].

    Args:
        step_sizes: of the first moment, 1 / (1 - beta1^age), or less.
        corrections: of the root of the second, 1 / sqrt(1 - beta2^age).
    """

    step_sizes: Tensor
    corrections: Tensor

    @property
    def oldest(self) -> int:
        """The last entry, which is for all that are older too."""
        return len(self.step_sizes) - 1


def adam_step(
    weights: Tensor,
    gradients: Tensor,
    state: dict[str, Tensor],
    tables: AdamTables,
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> None:
    """Change `weights` and the `exp_avg`, `exp_avg_sq` and `age` of `state`, in place.

    All are contiguous, on the CPU, and float32 but for `age`, int32. `decay` is what weights are multiplied by first.

    Raises:
        InputError: the native library is missing.
        MemoryError: memory or threads ran out, or HEBBLINE_ISA names what this processor lacks.
    """
    done = _function()(
        weights.data_ptr(),
        gradients.data_ptr(),
        state["exp_avg"].data_ptr(),
        state["exp_avg_sq"].data_ptr(),
        state["age"].data_ptr(),
        weights.numel(),
        rate,
        decay,
        *betas,
        epsilon,
        tables.oldest,
        tables.step_sizes.data_ptr(),
        tables.corrections.data_ptr(),
        torch.get_num_threads(),
    )
    if done < 0:
        raise MemoryError("a step of Adam: memory or threads ran out, or HEBBLINE_ISA names what is not there")


@cache
def _function() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(str(library_path())).hebbline_adam_step
    pointer, number = ctypes.c_void_p, ctypes.c_float
    function.argtypes = [
        *[pointer] * 5,
        ctypes.c_int64,
        *[number] * 5,
        ctypes.c_int32,
        pointer,
        pointer,
        ctypes.c_int,
    ]
    function.restype = ctypes.c_int
    return function
