"""hebbline: train sparse Transformers, export them to sparse ONNX, serve them with Triton."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hebbline")
except PackageNotFoundError:  # run from a source tree, see from_source.py
    __version__ = "0.0.0+source"
