"""The ONNX Runtime op library: the `ai.hebbline` ops as fast CPU kernels."""

# Nothing of ours is imported at the top: in the root of a checkout this folder is also importable as `kernels`, the
# name of a library that transformers looks for and imports wherever it finds it.
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_FILE = "libhebbline_kernels.so"
OVERRIDE = "HEBBLINE_KERNELS"


def library_path() -> Path:
    """Path of the op library, for `SessionOptions.register_custom_ops_library`.

    The environment variable HEBBLINE_KERNELS names another build of it.

    Raises:
        InputError: the variable names no file, or the package was installed without its library.
    """
    from ..artifacts.errors import InputError

    if override := os.environ.get(OVERRIDE):
        if not Path(override).is_file():
            raise InputError(f"{OVERRIDE}={override}: no such file; unset it to use the installed library")
        return Path(override)
    return find_library(LIBRARY_FILE, __path__)


def find_library(file: str, directories: Iterable[str]) -> Path:
    """Path of a native library of ours, in the first of a package's directories that holds it.

    An editable installation has the sources in one place and what was built in another.

    Args:
        file: its name.
        directories: `__path__` of the package that the library belongs to.

    Raises:
        InputError: none of them holds it.
    """
    from ..artifacts.errors import InputError

    places = [Path(directory) / file for directory in directories]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"{file} is not in {places[0].parent}; reinstall hebbline, which builds it")


def register(options: "onnxruntime.SessionOptions") -> None:
    """Register the ops with the options of a session.

    Raises:
        InputError: there is no library, or it refuses this ONNX Runtime.
    """
    from ..artifacts.errors import InputError

    path = library_path()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime raises its own types, which share no base of theirs
        raise InputError(f"{path}: ONNX Runtime cannot load the op library: {error}") from error
