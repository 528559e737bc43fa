"""Which layout a layer gets, and the reason in words for the report."""

from dataclasses import dataclass
from typing import Literal

from .bitmask import BitmaskLayout
from .block import BlockLayout
from .cost import LATENCY_TOKENS, THROUGHPUT_TOKENS, Work, predicted_speedup
from .csr import CsrLayout
from .layout import Layout, layout_name
from .values import VALUE_TYPES

_ALL: list[Layout] = [
    *map(BitmaskLayout, VALUE_TYPES.values()),
    *map(CsrLayout, VALUE_TYPES.values()),
    *map(BlockLayout, VALUE_TYPES.values()),
]
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
FLOAT32_BYTES = 4
CACHE_BYTES = 32 << 20
"""A dense weight up to this size may stay in a processor's cache where a model is small, and is then read faster."""

Objective = Literal["latency", "throughput", "size"]
_TOKENS = {"latency": LATENCY_TOKENS, "throughput": THROUGHPUT_TOKENS}


@dataclass(frozen=True)
class Choice:
    """The layout of a layer (None: left dense), its bytes, the dense bytes, why, and the predicted speed-up.

    `speedup` is over the dense float32 product on one core, at the objective's number of tokens: 1 where the layer is
    left dense, and at one token where the objective is size.
    """

    layout: Layout | None
    packed_bytes: int
    dense_bytes: int
    reason: str
    speedup: float = 1.0


def choose_layout(
    out_features: int,
    in_features: int,
    links: int,
    *,
    values: str = "float32",
    objective: Objective = "latency",
    whole_blocks: bool = False,
) -> Choice:
    """The smallest layout, where it is faster than dense or, if the objective is size, smaller.

    Faster means with weights from memory, as in a model larger than the caches, and with weights in the cache too where
    the layer fits there.

    Bitmask and CSR hold the same links and run at the same speed, since the kernels repack at load: of the two, the
    one with fewer bytes is taken. Blocks are faster still and smaller, where there are any.

    Args:
        out_features: N.
        in_features: K.
        links: active weights.
        values: a name of VALUE_TYPES.
        objective: "latency" is one token at a time, "throughput" 64.
        whole_blocks: the mask is made of whole blocks of 16 x 16 (see `whole_blocks` in block.py).

    Raises:
        ValueError: no such values or objective.
    """
    if values not in VALUE_TYPES or objective not in (*_TOKENS, "size"):
        raise ValueError(f"no values '{values}' or objective '{objective}'")
    dense = out_features * in_features * FLOAT32_BYTES
    names = [
        layout_name(form, VALUE_TYPES[values]) for form in ("bitmask", "csr", *(["block"] if whole_blocks else []))
    ]
    sizes = {name: LAYOUTS[name].packed_bytes(out_features, in_features, links) for name in names}
    best = min(sizes, key=lambda name: sizes[name])
    tokens = _TOKENS.get(objective, LATENCY_TOKENS)
    work = Work(out_features, in_features, links, values, blocks=best.startswith("block"))
    speedup = predicted_speedup(work, tokens)
    figures = ", ".join(f"{name} {size / dense:.3f}" for name, size in sizes.items()) if dense else "no weights"
    if sizes[best] >= dense and values == "float32":
        return Choice(None, dense, dense, f"left dense: no layout is smaller (bytes over dense: {figures})")
    cached = predicted_speedup(work, tokens, cached=True) if dense <= CACHE_BYTES else speedup
    if objective != "size" and min(speedup, cached) <= 1:
        where = ", with weights in the cache," if cached < speedup else ""
        reason = f"left dense: at {tokens} tokens{where} {best} would be {min(speedup, cached):.2f} times as fast"
        return Choice(None, dense, dense, f"{reason} (bytes over dense: {figures})")
    reason = f"{best} has the fewest bytes (over dense: {figures}); {speedup:.1f} times as fast at {tokens} tokens"
    return Choice(LAYOUTS[best], sizes[best], dense, f"{reason}, predicted", speedup)
