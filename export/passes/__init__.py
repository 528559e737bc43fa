"""Passes over a decoder and its masks that keep its function: compact and permute."""

from .compaction import compact
from .permutation import permute
from .report import LayerChange, Passed, PassReport
from .run import PassOptions, run_passes

__all__ = [
    "LayerChange",
    "PassOptions",
    "PassReport",
    "Passed",
    "compact",
    "permute",
    "run_passes",
]
