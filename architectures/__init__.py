"""What a family of models is: `describe` names it from a configuration, and everything else reads the `Decoder`."""

from .checking import check_fits
from .decoder import (
    Attention,
    ConfigNames,
    Decoder,
    LayerKind,
    LearnedPositions,
    Mlp,
    Norm,
    Norms,
    Part,
    QueryKeyNorm,
    Rotary,
)
from .registry import FAMILIES, Family, describe
from .rotary import pin_frequencies, rotary_tables
from .stored_transposed import StoredTransposed, use_linear_layers

__all__ = [
    "FAMILIES",
    "Attention",
    "ConfigNames",
    "Decoder",
    "Family",
    "LayerKind",
    "LearnedPositions",
    "Mlp",
    "Norm",
    "Norms",
    "Part",
    "QueryKeyNorm",
    "Rotary",
    "StoredTransposed",
    "check_fits",
    "describe",
    "pin_frequencies",
    "rotary_tables",
    "use_linear_layers",
]
