"""The native library that only training uses: scores of absent links, and draws."""

from pathlib import Path

from ...kernels import find_library

LIBRARY_FILE = "libhebbline_train.so"


def library_path() -> Path:
    """Path of the library.

    Raises:
        InputError: the package was installed without it.
    """
    return find_library(LIBRARY_FILE, __path__)
