"""Export: a trained model directory, or an ONNX file from anyone, to a sparse ONNX artifact."""

from typing import TYPE_CHECKING, Any

from .packer import pack

if TYPE_CHECKING:
    from .exporter import export_model
    from .report import ExportReport

__all__ = ["ExportReport", "export_model", "pack"]


def __getattr__(name: str) -> Any:
    """Load the exporter when it is asked for: it needs torch and transformers, which packing does not."""
    if name == "export_model":
        from .exporter import export_model

        return export_model
    if name == "ExportReport":
        from .report import ExportReport

        return ExportReport
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
