"""Which layout a layer gets, and the reason in words for the report."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...artifacts import InputError
from ...kernels import library_path
from ...kernels.cost import Work, predicted_speedup
from ...kernels.isa import kernels_isa
from .layout import Layout
from .structures import CODED, LAYOUTS
from .values import VALUE_TYPES

FLOAT32_BYTES = 4
CACHE_BYTES = 32 << 20
"""Dense weights of a whole model up to this size may stay in a processor's cache, and are then read faster."""

SMALL_BYTES = 128 << 10
"""Of a dense weight so small, a call takes a few microseconds whatever it computes: it is packed by bytes."""
LATENCY_TOKENS = 1
THROUGHPUT_TOKENS = 64
Objective = Literal["latency", "throughput", "size"]
_TOKENS = {"latency": LATENCY_TOKENS, "throughput": THROUGHPUT_TOKENS}


@dataclass(frozen=True)
class Choice:
    """The layout of a layer (None: left dense), its bytes, the dense bytes, why, and the predicted speed-up.

    `speedup` is over the dense float32 product on one core, at the objective's number of tokens: 1 where the layer is
    left dense, at one token where the objective is size, and None where nothing can be predicted. `work` is what was
    predicted for.
    """

    layout: Layout | None
    packed_bytes: int
    dense_bytes: int
    reason: str
    speedup: float | None = None
    work: Work | None = None


@dataclass(frozen=True)
class Aim:
    """What layouts are chosen for.

    Attributes:
        isa: the instruction set ("scalar", "avx2", "avx2-vnni", "avx512", "amx"); None: this machine's.
        model_bytes: of all dense weights of the model that a layer is part of; None: of the layer alone.
    """

    isa: str | None = None
    model_bytes: int | None = None


HERE = Aim()


def choose_layout(
    out_features: int,
    in_features: int,
    links: int,
    *,
    values: str = "float32",
    objective: Objective = "latency",
    whole_blocks: bool = False,
    aim: Aim = HERE,
    weight_Z: NDArray[np.float32] | None = None,
) -> Choice:
    """The smallest layout, where it is faster than dense or, if the objective is size, smaller.

    Faster means with weights from memory, as in a model larger than the caches; where the model fits into a cache, with
    weights from there too. Without the op library, which alone makes a packed layer fast and knows how fast, the
    smallest layout is taken where it is smaller than dense.

    A layer whose dense weight is smaller than `SMALL_BYTES` is packed where that is smaller.

    Bitmask and CSR hold the same links and run at the same speed, since the kernels repack at load: of the two, the
    one with fewer bytes is taken. Blocks are faster still and smaller, where there are any.

    Coded exponents run at that speed too. They are smaller than a bitmask for most weights, but without the op library
    such a file takes longer to load: they are taken where the objective is size, and `weight_Z` is given.

    Args:
        out_features: N.
        in_features: K.
        links: active weights.
        values: a name of VALUE_TYPES.
        objective: "latency" is one token at a time, "throughput" 64.
        whole_blocks: the mask is made of whole blocks of 16 x 16 (see `whole_blocks` in block.py).
        aim: the instruction set to predict for, and the size of the model.
        weight_Z: the weights of the links.

    Raises:
        ValueError: no such values or objective.
        InputError: no such instruction set.
    """
    if values not in VALUE_TYPES or objective not in (*_TOKENS, "size"):
        raise ValueError(f"no values '{values}' or objective '{objective}'")
    dense = out_features * in_features * FLOAT32_BYTES
    sizes = _sizes(out_features, in_features, links, values, whole_blocks)
    if objective == "size" and weight_Z is not None:
        sizes |= _coded_sizes(out_features, in_features, weight_Z, values)
    best = min(sizes, key=lambda name: sizes[name])
    work = Work(out_features, in_features, links, values, blocks=LAYOUTS[best].needs_blocks > 0)
    figures = ", ".join(f"{name} {size / dense:.3f}" for name, size in sizes.items()) if dense else "no weights"
    chosen = aim.isa or predictable_isa()
    if sizes[best] >= dense and values == "float32":
        reason = f"left dense: no layout is smaller (bytes over dense: {figures})"
        return Choice(None, dense, dense, reason, None if chosen is None else 1.0, work)
    if chosen is None:
        reason = f"{best} has the fewest bytes (over dense: {figures}); without the op library no speed is predicted"
        return Choice(LAYOUTS[best], sizes[best], dense, reason, None, work)
    tokens = _TOKENS.get(objective, LATENCY_TOKENS)
    speedup, cached = _speedups(work, tokens, chosen, dense if aim.model_bytes is None else aim.model_bytes)
    at = f"at {tokens} token{'s' * (tokens > 1)}, predicted for {chosen}"
    if objective != "size" and dense > SMALL_BYTES and min(speedup, cached) <= 1:
        where = " with weights in the cache" if cached < speedup else ""
        reason = f"left dense: {best} would be {min(speedup, cached):.2f} times as fast{where} {at}"
        return Choice(None, dense, dense, f"{reason} (bytes over dense: {figures})", 1.0, work)
    reason = f"{best} has the fewest bytes (over dense: {figures}); {speedup:.1f} times as fast {at}"
    if speedup <= 1 and dense <= SMALL_BYTES:
        reason += ", which matters little in a layer so small"
    return Choice(LAYOUTS[best], sizes[best], dense, reason, speedup, work)


def predictable_isa() -> str | None:
    """The instruction set of this machine's kernels; None where there is no op library to predict for."""
    try:
        library_path()
    except InputError:
        return None
    return kernels_isa()


def _sizes(out_features: int, in_features: int, links: int, values: str, whole_blocks: bool) -> dict[str, int]:
    """Bytes of each layout that can hold the layer."""
    return {
        layout.name: layout.packed_bytes(out_features, in_features, links)
        for layout in LAYOUTS.values()
        if layout.values.name == values and layout.name not in CODED and (whole_blocks or not layout.needs_blocks)
    }


def _coded_sizes(out_features: int, in_features: int, weight_Z: NDArray[np.float32], values: str) -> dict[str, int]:
    """Bytes of each layout whose size depends on the weights."""
    return {
        layout.name: layout.packed_bytes(out_features, in_features, len(weight_Z), weight_Z)
        for layout in CODED.values()
        if layout.values.name == values
    }


def _speedups(work: Work, tokens: int, isa: str, dense_bytes: int) -> tuple[float, float]:
    """Over dense, with weights from memory, and in the cache where so many bytes may stay there."""
    speedup = predicted_speedup(work, tokens, isa)
    in_cache = dense_bytes <= CACHE_BYTES
    return speedup, predicted_speedup(work, tokens, isa, cached=True) if in_cache else speedup
