"""Export: a trained model directory to a sparse ONNX artifact."""

from .exporter import export_model
from .report import ExportReport

__all__ = ["ExportReport", "export_model"]
