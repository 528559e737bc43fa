"""From a model directory to an ONNX graph."""

from .attention import AttentionForm, StockAttention, VarlenAttention
from .decoder import build_decoder
from .head import HeadForm
from .opening import load_source, open_source
from .source import SourceModel
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
    "open_source",
    "save_graph",
]
