"""Packing the zeros of an ONNX file that somebody else wrote: read safely, find the linear layers, rewrite, verify.

Nothing in this package trusts the file: see `files` and `document` for what is refused, and how.
"""

from .document import Document, open_document
from .options import PackOptions
from .packing import Packing
from .report import PackedLayer, PackReport
from .report_page import pack_page

__all__ = ["Document", "PackOptions", "PackReport", "PackedLayer", "Packing", "open_document", "pack_page"]
