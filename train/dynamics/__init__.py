"""How masks change during training: density, removal, chains, regrowth, and what holds them together."""

from .chains import Chain, Side, consecutive, llama_chains, paired, remove_chains
from .config import (
    FractionConfig,
    RegrowthConfig,
    RemovalConfig,
    SparsityConfig,
    TopologyConfig,
    UpdateConfig,
)
from .density import density_schedule, removal_fraction
from .regrowth import regrow_links
from .removal import keep_links, removal_scores
from .sparsifier import Sparsifier, UpdateReport

__all__ = [
    "Chain",
    "FractionConfig",
    "RegrowthConfig",
    "RemovalConfig",
    "Side",
    "Sparsifier",
    "SparsityConfig",
    "TopologyConfig",
    "UpdateConfig",
    "UpdateReport",
    "consecutive",
    "density_schedule",
    "keep_links",
    "llama_chains",
    "paired",
    "regrow_links",
    "removal_fraction",
    "removal_scores",
    "remove_chains",
]
