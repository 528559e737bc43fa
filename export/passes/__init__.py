"""Passes over a Llama and its masks that keep its function: compact, permute, and the 2:4 split of a layer."""

from .compact import compact
from .permute import permute
from .report import LayerChange, Passed, PassReport
from .residual import choose_nm24, split_two_of_four
from .run import PassOptions, run_passes

__all__ = [
    "LayerChange",
    "PassOptions",
    "PassReport",
    "Passed",
    "choose_nm24",
    "compact",
    "permute",
    "run_passes",
    "split_two_of_four",
]
