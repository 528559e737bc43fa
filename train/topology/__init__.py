"""Graphs of linear layers: initial graphs, gradient-free link prediction, structures and measures."""

from .initial import TOPOLOGIES, initial_mask, link_count
from .link_prediction import LINK_SCORES, link_scores
from .structure import Structure

__all__ = ["LINK_SCORES", "TOPOLOGIES", "Structure", "initial_mask", "link_count", "link_scores"]
