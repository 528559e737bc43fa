"""How masks change during training: density, removal, chains, regrowth, and what holds them together."""

from .chains import Chain, Side, consecutive, decoder_chains, model_chains, paired, remove_chains
from .config import (
    FractionConfig,
    GroupConfig,
    NewLinksConfig,
    RegrowthConfig,
    RemovalConfig,
    SparsityConfig,
    TopologyConfig,
    UpdateConfig,
)
from .density import density_schedule, erk_densities, removal_fraction
from .methods import PRESETS
from .regrowth import regrow_links
from .removal import keep_links, removal_scores
from .sparsifier import Sparsifier
from .update import UpdateReport

__all__ = [
    "PRESETS",
    "Chain",
    "FractionConfig",
    "GroupConfig",
    "NewLinksConfig",
    "RegrowthConfig",
    "RemovalConfig",
    "Side",
    "Sparsifier",
    "SparsityConfig",
    "TopologyConfig",
    "UpdateConfig",
    "UpdateReport",
    "consecutive",
    "decoder_chains",
    "density_schedule",
    "erk_densities",
    "keep_links",
    "model_chains",
    "paired",
    "regrow_links",
    "removal_fraction",
    "removal_scores",
    "remove_chains",
]
