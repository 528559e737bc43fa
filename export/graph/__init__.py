"""From a model directory to an ONNX graph."""

from .llama import build_llama
from .source import SourceModel, load_source

__all__ = ["SourceModel", "build_llama", "load_source"]
