"""The Triton server in the `nvidia-pytriton` wheel: where its parts are, and how they are put together."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ...artifacts import InputError

TRITON_VERSION = "2.51.0"
INSTALL = "pip install 'hebbline[serve]'"


@dataclass(frozen=True)
class TritonWheel:
    """The wheel's directories, and the directory of this Python's shared library (None: on the loader's own path)."""

    server: Path
    libraries: Path
    python_library: Path | None

    @property
    def binary(self) -> Path:
        """The server's executable."""
        return self.server / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The executable that runs a model in this version of Python."""
        return self.server / "python_backend_stubs" / python_version() / "triton_python_backend_stub"

    def assemble_backends(self, directory: Path) -> None:
        """Make a backend directory with the Python backend and the one stub that fits this Python."""
        backend = directory / "python"
        backend.mkdir(parents=True)
        source = self.server / "backends" / "python"
        for path in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", self.stub):
            shutil.copy2(path, backend)

    def environment(self) -> dict[str, str]:
        """The environment of the server: models run in the virtual environment that this process runs in."""
        environment = dict(os.environ)
        environment.pop("PYTHONHOME", None)
        # The stub's interpreter finds its packages through the first `python3` on the path.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        # The parts were copied away from where their own library paths point.
        libraries = [str(self.libraries), str(self.python_library or ""), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        return environment


def find_wheel() -> TritonWheel:
    """Find the wheel without importing it, and check that models can run beside it.

    Raises:
        InputError: the wheel is not installed, or has no stub for this Python; Python has no shared library; or the
            installed NumPy is one with which the server's outputs are empty.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the Triton server is not installed: {INSTALL}")
    package = Path(spec.submodule_search_locations[0])
    wheel = TritonWheel(package / "tritonserver", package.parent / "nvidia_pytriton.libs", _python_library_directory())
    if not wheel.binary.is_file():
        raise InputError(f"{wheel.binary} is missing: {INSTALL}")
    if not wheel.stub.is_file():
        versions = ", ".join(sorted(path.name for path in wheel.stub.parent.parent.iterdir()))
        raise InputError(f"the wheel's Triton runs models in Python {versions}, not in {python_version()}")
    numpy_version = importlib.metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise InputError(f"numpy {numpy_version}: the wheel's Triton gives empty outputs with numpy 2; {INSTALL}")
    return wheel


def python_version() -> str:
    """This Python as the wheel names it, such as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _python_library_directory() -> Path | None:
    directory = Path(sysconfig.get_config_var("LIBDIR") or "")
    if (directory / f"libpython{python_version()}.so.1.0").is_file():
        return directory
    if ctypes.util.find_library(f"python{python_version()}"):
        return None
    raise InputError(f"Triton needs libpython{python_version()}.so.1.0, which this Python was built without")
