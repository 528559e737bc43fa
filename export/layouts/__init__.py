"""Packed layouts: encodings of a masked linear layer in ONNX tensors."""

from .bitmask import BitmaskLayout
from .block import BlockLayout, whole_blocks
from .choose import LAYOUTS, Choice, Objective, choose_layout
from .cost import Work, dense_microseconds, predicted_microseconds, predicted_speedup
from .csr import CsrLayout
from .fused import FusedKind, FusedOp
from .layout import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Layout
from .nm24 import NM24_LAYOUTS, Nm24Layout
from .values import VALUE_TYPES, ValueType

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "IR_VERSION",
    "LAYOUTS",
    "NM24_LAYOUTS",
    "OPSET",
    "VALUE_TYPES",
    "BitmaskLayout",
    "BlockLayout",
    "Choice",
    "CsrLayout",
    "FusedKind",
    "FusedOp",
    "Layout",
    "Nm24Layout",
    "Objective",
    "ValueType",
    "Work",
    "choose_layout",
    "dense_microseconds",
    "predicted_microseconds",
    "predicted_speedup",
    "whole_blocks",
]
