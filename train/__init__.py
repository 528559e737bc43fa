"""Training of Transformers whose linear layers are sparse graphs."""

from typing import TYPE_CHECKING, Any

from .dynamics import Sparsifier, SparsityConfig
from .link_adamw import LinkAdamW

if TYPE_CHECKING:
    from .dynamics.callback import SparsityCallback

__all__ = ["LinkAdamW", "Sparsifier", "SparsityCallback", "SparsityConfig"]


def __getattr__(name: str) -> Any:
    """Load the callback when it is asked for: it alone needs transformers."""
    if name != "SparsityCallback":
        raise AttributeError(f"module 'hebbline.train' has no attribute '{name}'")
    from .dynamics.callback import SparsityCallback

    return SparsityCallback
