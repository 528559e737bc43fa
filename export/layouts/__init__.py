"""Packed layouts: encodings of a masked linear layer in ONNX tensors."""

from .bitmask import BitmaskLayout
from .block import BlockLayout, whole_blocks
from .choose import Aim, Choice, Objective, choose_layout
from .csr import CsrLayout
from .fused import FusedKind, FusedOp
from .layout import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Layout
from .nm24 import NM24_LAYOUTS, Nm24Layout
from .structures import CODED, LAYOUTS, STRUCTURES
from .values import VALUE_TYPES, ValueType

__all__ = [
    "CODED",
    "DOMAIN",
    "DOMAIN_VERSION",
    "IR_VERSION",
    "LAYOUTS",
    "NM24_LAYOUTS",
    "OPSET",
    "STRUCTURES",
    "VALUE_TYPES",
    "Aim",
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
    "choose_layout",
    "whole_blocks",
]
