"""hebbline: train sparse Transformers, export them to sparse ONNX, serve them with Triton.

What is listed here is the public interface. Each name is loaded when it is first used, with only the packages that it
needs: a client needs neither torch nor transformers.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifacts.errors import CheckError, HebblineError, InputError
    from .export.exporter import export_model
    from .export.packer import pack
    from .serve.client import Client
    from .serve.local import LanguageModel, load
    from .serve.parameters import SamplingParameters
    from .train import Sparsifier, SparsityCallback, SparsityConfig
    from .train.save import save_model_directory

try:
    __version__ = version("hebbline")
except PackageNotFoundError:  # run from a source tree, see from_source.py
    __version__ = "0.0.0+source"
_PLACES = {
    "CheckError": ".artifacts.errors",
    "Client": ".serve.client",
    "HebblineError": ".artifacts.errors",
    "InputError": ".artifacts.errors",
    "LanguageModel": ".serve.local",
    "SamplingParameters": ".serve.parameters",
    "Sparsifier": ".train",
    "SparsityCallback": ".train",
    "SparsityConfig": ".train",
    "export_model": ".export.exporter",
    "load": ".serve.local",
    "pack": ".export.packer",
    "save_model_directory": ".train.save",
}
__all__ = [
    "CheckError",
    "Client",
    "HebblineError",
    "InputError",
    "LanguageModel",
    "SamplingParameters",
    "Sparsifier",
    "SparsityCallback",
    "SparsityConfig",
    "export_model",
    "load",
    "pack",
    "save_model_directory",
]


def __getattr__(name: str) -> Any:
    """Load a name of the public interface."""
    if name not in _PLACES:
        raise AttributeError(f"module 'hebbline' has no attribute '{name}'")
    value = getattr(import_module(_PLACES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
