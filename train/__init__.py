"""Training of Transformers whose linear layers are sparse graphs."""

from .dynamics import Sparsifier, SparsityConfig
from .dynamics.callback import SparsityCallback

__all__ = ["Sparsifier", "SparsityCallback", "SparsityConfig"]
