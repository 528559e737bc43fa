"""From a model directory to an ONNX graph."""

from .attention import AttentionForm, StockAttention, VarlenAttention
from .decoder import build_decoder
from .head import HeadForm
from .source import SourceModel, load_source
from .weights import WeightFile, save_graph

__all__ = [
    "AttentionForm",
    "HeadForm",
    "SourceModel",
    "StockAttention",
    "VarlenAttention",
    "WeightFile",
    "build_decoder",
    "load_source",
    "save_graph",
]
