"""Packed layouts: encodings of a masked linear layer in ONNX tensors."""

from .bitmask import BitmaskLayout
from .block import BlockLayout
from .choose import LAYOUTS, Choice, choose_layout
from .csr import CsrLayout
from .layout import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Layout
from .values import VALUE_TYPES, ValueType

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "IR_VERSION",
    "LAYOUTS",
    "OPSET",
    "VALUE_TYPES",
    "BitmaskLayout",
    "BlockLayout",
    "Choice",
    "CsrLayout",
    "Layout",
    "ValueType",
    "choose_layout",
]
