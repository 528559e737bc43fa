"""What a family of models is: `describe` names it from a configuration, and everything else reads the `Decoder`."""

from .checking import check_fits, check_layers
from .decoder import (
    Activation,
    Attention,
    ConfigNames,
    Decoder,
    Experts,
    LayerKind,
    LearnedPositions,
    Mlp,
    Norm,
    Norms,
    Part,
    QueryKeyNorm,
    Rotary,
)
from .experts import EARLIER_NAMES
from .loading import settle, settle_any, tie_missing_head
from .registry import FAMILIES, Family, decoder_of, describe, describe_at, describe_known
from .rotary import pin_frequencies, rotary_tables
from .stored_transposed import StoredTransposed, use_linear_layers

__all__ = [
    "EARLIER_NAMES",
    "FAMILIES",
    "Activation",
    "Attention",
    "ConfigNames",
    "Decoder",
    "Experts",
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
    "check_layers",
    "decoder_of",
    "describe",
    "describe_at",
    "describe_known",
    "pin_frequencies",
    "rotary_tables",
    "settle",
    "settle_any",
    "tie_missing_head",
    "use_linear_layers",
]
