"""Packed layouts: exact encodings of a masked linear layer in ONNX tensors."""

from .bitmask import BitmaskLayout
from .choose import LAYOUTS, Choice, choose_layout
from .csr import CsrLayout
from .layout import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Layout

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "IR_VERSION",
    "LAYOUTS",
    "OPSET",
    "BitmaskLayout",
    "Choice",
    "CsrLayout",
    "Layout",
    "choose_layout",
]
