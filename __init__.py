"""hebbline: train sparse Transformers, export them to sparse ONNX, serve them with Triton."""

from importlib.metadata import version

__version__ = version("hebbline")
