"""TensorRT engines: the graph in the form that NVIDIA's parser takes, checked, built and recorded."""

from .build import RUNTIMES, EngineRuntime
from .exporter import EngineOptions, export_engines
from .report import EngineReport

__all__ = ["RUNTIMES", "EngineOptions", "EngineReport", "EngineRuntime", "export_engines"]
