"""From a model directory to an ONNX graph."""

from .attention import AttentionForm, StockAttention, VarlenAttention
from .head import HeadForm
from .llama import build_llama
from .source import SourceModel, load_source
from .weights import WeightFile, save_graph

__all__ = [
    "AttentionForm",
    "HeadForm",
    "SourceModel",
    "StockAttention",
    "VarlenAttention",
    "WeightFile",
    "build_llama",
    "load_source",
    "save_graph",
]
