"""Pruning of pretrained decoders: which links stay, and weights that make good what was lost."""

from .api import prune
from .config import PruneConfig

__all__ = ["PruneConfig", "prune"]
