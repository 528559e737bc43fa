"""Sessions of ONNX Runtime on the CPU, and arrays bound to their inputs and outputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from ..artifacts import InputError
from ..kernels import register

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
    options = _options(threads)
    if kernels:
        register(options)
    return _open(path, options, path)


def load_lean_session(path: Path, content: bytes | None = None, *, folded: bool) -> onnxruntime.InferenceSession:
    """A session of stock ops that gives memory back as soon as it is done with it, for a graph that is run a few times.

    Args:
        path: an ONNX file.
        content: a model to load in place of the file's, such as a part of it; its tensors are in files beside `path`.
        folded: compute what does not depend on the inputs once, at loading: the dense weights of packed layers. That
            takes some 20 bytes a weight while it lasts. Otherwise it is computed in every step.

    Raises:
        InputError: ONNX Runtime cannot load the model.
    """
    options = _options(None)
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Prepared weights would be a copy of those that are mapped.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if content is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return _open(path if content is None else content, options, path, [] if folded else ["ConstantFolding"])


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # "session.set_denormal_as_zero" is left alone: it would change the floating-point mode of the calling thread for
    # good.
    return options


def _open(
    model: Path | bytes, options: onnxruntime.SessionOptions, path: Path, disabled_optimizers: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """The session of a model, which `path` names in messages."""
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled_optimizers)
        )
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
