"""Operators that hold a product within: written out in simpler operators, of which the product is a packed one.

A form is packed only where it is measured to be faster than ONNX Runtime's own kernel for the operator, and where the
two give the same results.
"""

from .expansion import Context, Expansion
from .registry import expansion_of
from .trial import Outcome, Trial

__all__ = ["Context", "Expansion", "Outcome", "Trial", "expansion_of"]
