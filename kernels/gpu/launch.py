"""Which kernel runs with which tiles, and the launch on torch tensors.

Legend: T tokens, N out_features, K in_features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .packing import GAP_TILE, TILE

DECODE_TOKENS = {"bitmask": 1, "csr": 8, "block": 1, "nm24": 2, "gap": 8, "gap8": 8}
"""Up to so many tokens a decode kernel takes; above, a prefill kernel shares the weight among them. Where the two meet
follows from their instructions (`roofline`). Gap-coded rows are decoded once for 1, 2, 4 or 8 tokens, by a kernel for
each; the other kernels run once for each token."""
_GAP_TOKENS = {"decode": 1, "decode2": 2, "decode4": 4, "decode8": 8, "prefill": 32, "prefill128": 128}
PHASES = dict.fromkeys(("bitmask", "csr", "block", "nm24"), ("decode", "prefill")) | dict.fromkeys(
    ("gap", "gap8"), tuple(_GAP_TOKENS)
)
"""The kernels of each form, by what they are for, from few tokens to many."""


@dataclass(frozen=True)
class LaunchPlan:
    """How a kernel runs: its name in `linear_kernels`, compile-time constants, rows of W and tokens of one program, and
    warps."""

    kernel: str
    constants: Mapping[str, int]
    rows: int
    tokens: int
    warps: int

    def grid(self, tokens: Any, out_features: Any) -> tuple[Any, Any]:
        """Programs along rows and tokens; the sizes may be symbolic."""
        return ceil_divided(out_features, self.rows), ceil_divided(tokens, self.tokens)


def launch_plan(form: str, phase: str, block_size: int = 32) -> LaunchPlan:
    """The plan for a form of `packing` and a phase of `PHASES`.

    The tiles are chosen for occupancy and register use as the compiler reports it, not by timing: no GPU was at hand.

    Raises:
        KeyError: there is no such form or phase.
    """
    plans = {
        ("bitmask", "decode"): LaunchPlan("bitmask_decode", {"BLOCK_N": 8, "TILE": TILE}, 8, 1, 4),
        ("bitmask", "prefill"): LaunchPlan("bitmask_prefill", {"BLOCK_T": 32, "BLOCK_N": 32, "TILE": TILE}, 32, 32, 4),
        ("csr", "decode"): LaunchPlan("csr_decode", {"BLOCK_Z": 128}, 1, 1, 2),
        ("csr", "prefill"): LaunchPlan("csr_prefill", {"BLOCK_T": 32, "BLOCK_Z": 32}, 1, 32, 4),
        ("block", "decode"): LaunchPlan("block_decode", {"SIZE": block_size}, block_size, 1, 4),
        ("block", "prefill"): LaunchPlan("block_prefill", {"BLOCK_T": 32, "SIZE": block_size}, block_size, 32, 4),
        ("nm24", "decode"): LaunchPlan("nm24_decode", {"BLOCK_N": 8, "BLOCK_K": 256, "BLOCK_Z": 32}, 8, 1, 4),
        ("nm24", "prefill"): LaunchPlan(
            "nm24_prefill", {"BLOCK_T": 32, "BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_Z": 32}, 32, 32, 4
        ),
    }
    if form in ("gap", "gap8"):
        return _gap_plan(form, phase)
    return plans[form, phase]


def _gap_plan(form: str, phase: str) -> LaunchPlan:
    """Of gap-coded rows a warp decodes one, as the lanes that hold a row's words share a scan."""
    tokens = _GAP_TOKENS[phase]
    if phase.startswith("decode"):
        return LaunchPlan(f"{form}_decode", {"BLOCK_N": 4, "BLOCK_T": tokens, "BLOCK_W": 32}, 4, tokens, 4)
    return LaunchPlan(f"{form}_prefill", {"BLOCK_T": tokens, "BLOCK_N": 32, "TILE": GAP_TILE}, 32, tokens, 4)


def phase_of(form: str, tokens: int) -> str:
    """The phase whose kernel takes so many tokens."""
    if form in ("gap", "gap8"):
        return next((phase for phase, most in _GAP_TOKENS.items() if tokens <= most), PHASES[form][-1])
    return "decode" if tokens <= DECODE_TOKENS[form] else "prefill"


def ceil_divided(size: Any, step: int) -> Any:
    """ceil(size / step); a symbolic size of TensorRT is divided by its own means."""
    return size if step == 1 else (size + (step - 1)) // step


def launch(form: str, x_TK: torch.Tensor, tensors: Sequence[torch.Tensor], out_features: int) -> torch.Tensor:
    """Y [T, N] of contiguous X [T, K], with the kernel for its number of tokens."""
    from . import linear_kernels  # plans are made where the Triton language is not installed, too

    tokens, in_features = x_TK.shape
    block_size = tensors[0].shape[-1] if form == "block" else 32
    plan = launch_plan(form, phase_of(form, tokens), block_size)
    y_TN = torch.empty((tokens, out_features), dtype=x_TK.dtype, device=x_TK.device)
    if y_TN.numel():
        kernel: Callable[..., Any] = getattr(linear_kernels, plan.kernel)[plan.grid(tokens, out_features)]
        kernel(x_TK, *tensors, tokens, out_features, in_features, y_TN, num_warps=plan.warps, **plan.constants)
    return y_TN
