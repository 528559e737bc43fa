"""What a family of models is: `describe` names it from a configuration, and everything else reads the `Decoder`."""

from .checking import check_fits
from .decoder import (
    Activation,
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
from .loading import settle, settle_any
from .registry import FAMILIES, Family, decoder_of, describe
from .rotary import pin_frequencies, rotary_tables
from .stored_transposed import StoredTransposed, use_linear_layers

__all__ = [
    "FAMILIES",
    "Activation",
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
    "decoder_of",
    "describe",
    "pin_frequencies",
    "rotary_tables",
    "settle",
    "settle_any",
    "use_linear_layers",
]
