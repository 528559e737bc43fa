"""Graphs of linear layers: initial graphs and gradient-free link prediction."""

from .initial import TOPOLOGIES, initial_mask, link_count
from .link_prediction import LINK_SCORES, link_scores

__all__ = ["LINK_SCORES", "TOPOLOGIES", "initial_mask", "link_count", "link_scores"]
