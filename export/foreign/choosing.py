"""Whether a weight is packed, in which layout, and the reason in words.

Legend: N out_features, K in_features.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.cost import BASELINE, predict
from ..layouts import CODED, LAYOUTS, STRUCTURES, Aim, Choice, Layout, choose_layout
from ..layouts.block import whole_blocks
from ..layouts.choose import HERE, LATENCY_TOKENS, THROUGHPUT_TOKENS, predictable_isa
from ..layouts.values import Float16Values
from .options import PackOptions

TOKENS = {"latency": LATENCY_TOKENS, "throughput": THROUGHPUT_TOKENS, "size": LATENCY_TOKENS}
"""Tokens at a time that an objective stands for."""


@dataclass(frozen=True)
class Times:
    """Time of a layer dense and packed, for one token or for many by the objective.

    `unit` says how they were come by: "us measured" here, or "us predicted for avx2" by the cost model.
    """

    dense: float
    packed: float
    unit: str

    @property
    def speedup(self) -> float:
        """Dense over packed."""
        return self.dense / self.packed


@dataclass(frozen=True)
class Decision:
    """The layout that a weight gets (None: it is left), its bytes, and why."""

    layout: Layout | None
    packed_bytes: int
    reason: str
    times: Times | None = None


Measure = Callable[[NDArray[np.float32], NDArray[np.bool_], Sequence[Layout]], tuple[Layout | None, Times, str]]
"""Times the candidates for W [N, K] and its mask: the fastest (None: dense), its times, and the figures in words."""


def decide(
    weight_NK: NDArray[np.float32],
    mask_NK: NDArray[np.bool_],
    stored_bytes: int,
    stays: str | None,
    options: PackOptions,
    measure: Measure | None,
    values: str = "",
    aim: Aim = HERE,
) -> Decision:
    """Choose for one weight.

    Args:
        weight_NK, mask_NK: the weight and its non-zeros.
        stored_bytes: what the file holds for it now.
        stays: what else reads the dense weight, so that it stays in the file; None where nothing does.
        options: of the whole run.
        measure: times candidates; None asks the cost model.
        values: how weights are stored, where it is not what the options say: `HALF`.
        aim: what the cost model predicts for.
    """
    values = values or options.values
    if weight_NK.size == 0:
        return Decision(None, stored_bytes, "left: one of its dimensions is 0")
    links = int(np.count_nonzero(mask_NK))
    if links == weight_NK.size:
        return Decision(None, stored_bytes, "left: none of its weights is zero")
    if values not in ("float32", HALF) and not np.isfinite(weight_NK).all():
        return Decision(None, stored_bytes, f"left: it has infinite or NaN weights, which {values} cannot hold")
    layout, packed_bytes, times, reason = _candidate(weight_NK, mask_NK, links, options, measure, values, aim)
    if layout is None:
        return Decision(None, stored_bytes, reason, times)
    return check_gain(Decision(layout, packed_bytes, reason, times), stored_bytes, stays, options)


HALF = "float16"
"""The values of weights that a file holds in float16, where the weights are asked for as they are."""
HALF_LAYOUTS: tuple[Layout, ...] = tuple(structure(Float16Values()) for structure in STRUCTURES)


def candidates(mask_NK: NDArray[np.bool_], values: str) -> list[Layout]:
    """The layouts that can hold this mask with these values; blocks only where the mask is made of whole ones.

    Their size is known from the mask: of those whose size depends on the weights there is none.
    """
    return [
        layout
        for layout in (*LAYOUTS.values(), *HALF_LAYOUTS)
        if layout.values.name == values
        and layout.name not in CODED
        and (not layout.needs_blocks or whole_blocks(mask_NK, layout.needs_blocks) is not None)
    ]


def _candidate(
    weight_NK: NDArray[np.float32],
    mask_NK: NDArray[np.bool_],
    links: int,
    options: PackOptions,
    measure: Measure | None,
    values: str,
    aim: Aim,
) -> tuple[Layout | None, int, Times | None, str]:
    """The best layout by measurement or by the cost model, with bytes, times and reason."""
    out_features, in_features = weight_NK.shape
    layouts = candidates(mask_NK, values)
    sizes = {layout.name: layout.packed_bytes(out_features, in_features, links) for layout in layouts}
    if measure is not None:
        layout, measured, reason = measure(weight_NK, mask_NK, layouts)
        return layout, 0 if layout is None else sizes[layout.name], measured, reason
    choice = choose_layout(
        out_features,
        in_features,
        links,
        values="float32" if values == HALF else values,
        objective=options.objective,
        whole_blocks=any(layout.needs_blocks for layout in layouts),
        aim=aim,
        weight_Z=weight_NK[mask_NK] if options.objective == "size" and values != HALF else None,
    )
    times = _predicted_times(choice, options, aim)
    if choice.layout is None or values != HALF:
        return choice.layout, choice.packed_bytes, times, choice.reason
    smallest = min(layouts, key=lambda layout: sizes[layout.name])
    return smallest, sizes[smallest.name], times, f"{smallest.name}: {choice.reason}"


def _predicted_times(choice: Choice, options: PackOptions, aim: Aim) -> Times | None:
    """By the cost model; None where nothing can be predicted."""
    isa = aim.isa or predictable_isa()
    if isa is None or choice.work is None or choice.speedup is None:
        return None
    dense = predict(choice.work, TOKENS[options.objective], isa, BASELINE).microseconds
    return Times(dense, dense / choice.speedup, f"us predicted for {isa}")


def check_gain(decision: Decision, stored_bytes: int, stays: str | None, options: PackOptions) -> Decision:
    """Leave a weight whose packed form is no gain by what the user asked for."""
    times, size = decision.times, decision.packed_bytes
    if size >= stored_bytes:
        kept = f"left: packed it would take {size:,} bytes, the file holds it in {stored_bytes:,}"
        return Decision(None, stored_bytes, kept, times)
    if stays is not None:
        return Decision(None, stored_bytes, f"left: {stays}, so that packing would add {size:,} bytes", times)
    if times is not None and times.speedup < options.min_speedup:
        kept = f"left: its speed-up {times.speedup:.2f} is below {options.min_speedup:g} ({decision.reason})"
        return Decision(None, stored_bytes, kept, times)
    return decision


def split_zeros(weight_NK: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """The weight with +0 for every zero, the mask of its non-zeros, and the number of -0 among the zeros.

    Multiplying by a mask leaves -0 where a negative weight was. It is no link: it adds nothing to a sum.
    """
    mask_NK = weight_NK != 0
    minus_zeros = int(np.count_nonzero(~mask_NK & np.signbit(weight_NK)))
    if minus_zeros:
        weight_NK = np.where(mask_NK, weight_NK, np.float32(0))
    return weight_NK, mask_NK, minus_zeros


def digest(weight_NK: NDArray[np.float32]) -> str:
    """What tells two weights apart: shape and bits."""
    return hashlib.sha256(repr(weight_NK.shape).encode() + weight_NK.tobytes()).hexdigest()
