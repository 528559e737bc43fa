"""The instruction set that the kernels use, as the native library chooses it."""

import ctypes

from . import library_path

_CAPACITY = 256


def kernels_isa() -> str:
    """The name of the instruction set that new kernels use: "scalar", "avx2", "avx2-vnni", "avx512", "amx" ...

    It is the best that this processor has, or what the environment variable HEBBLINE_ISA names.

    Raises:
        InputError: the variable names no instruction set, or one that this processor lacks; there is no library.
    """
    from ..artifacts.errors import InputError

    function = ctypes.CDLL(str(library_path())).hebbline_isa
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    text = ctypes.create_string_buffer(_CAPACITY)
    if function(text, _CAPACITY) < 0:
        raise InputError(text.value.decode())
    return text.value.decode()
