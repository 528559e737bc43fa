"""Which layout a layer gets, and the reason in words for the report."""

from dataclasses import dataclass

from .bitmask import BitmaskLayout
from .block import BlockLayout
from .csr import CsrLayout
from .layout import Layout
from .values import VALUE_TYPES

_ALL: list[Layout] = [
    *map(BitmaskLayout, VALUE_TYPES.values()),
    *map(CsrLayout, VALUE_TYPES.values()),
    *map(BlockLayout, VALUE_TYPES.values()),
]
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """The layout of a layer (None: left dense), its bytes, the dense bytes, and why."""

    layout: Layout | None
    packed_bytes: int
    dense_bytes: int
    reason: str


def choose_layout(out_features: int, in_features: int, links: int) -> Choice:
    """The layout with the fewest bytes, dense included: a linear layer at few tokens is bound by the bytes it reads."""
    dense = out_features * in_features * FLOAT32_BYTES
    sizes = {name: LAYOUTS[name].packed_bytes(out_features, in_features, links) for name in ("bitmask", "csr")}
    best = min(sizes, key=lambda name: sizes[name])
    figures = ", ".join(f"{name} {size / dense:.3f}" for name, size in sizes.items())
    if sizes[best] >= dense:
        return Choice(None, dense, dense, f"left dense: no layout is smaller (bytes over dense: {figures})")
    return Choice(LAYOUTS[best], sizes[best], dense, f"{best} has the fewest bytes (over dense: {figures})")
