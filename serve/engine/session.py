"""Sessions of ONNX Runtime on the CPU, and arrays bound to their inputs and outputs."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from ...artifacts import InputError
from ...kernels import register

CACHE_LINE_BYTES = 64


def load_session(path: Path, threads: int | None, *, kernels: bool) -> onnxruntime.InferenceSession:
    """A session of one ONNX file.

    Args:
        path: the file.
        threads: within an operator; None takes one for each physical core.
        kernels: register the op library.

    Raises:
        InputError: ONNX Runtime cannot load the file, or the op library.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # "session.set_denormal_as_zero" is left alone: it would change the floating-point mode of the calling thread for
    # good.
    if kernels:
        register(options)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise InputError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error


def bind_input(io: onnxruntime.IOBinding, name: str, array: NDArray) -> None:
    """Let a session read an input from an array, which the caller keeps alive."""
    io.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


def bind_output(io: onnxruntime.IOBinding, name: str, array: NDArray) -> None:
    """Let a session write an output to an array, which the caller keeps alive."""
    io.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Zeros that begin at a cache line; pages are committed as they are first written."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + CACHE_LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[first : first + count].view(dtype).reshape(shape)
