"""The layouts that there are: the one list, from which the choice, the report, packing and the tests take them."""

from collections.abc import Callable

from .bitmask import BitmaskLayout
from .block import BlockLayout
from .coded import CodedLayout
from .csr import CsrLayout
from .layout import Layout
from .values import VALUE_TYPES, ValueType

STRUCTURES: tuple[Callable[[ValueType], Layout], ...] = (BitmaskLayout, CsrLayout, BlockLayout)
"""Each for all types of values. The op library computes all of them on a CPU."""
CODED: dict[str, CodedLayout] = {
    layout.name: layout for layout in (CodedLayout(VALUE_TYPES["float32"]), CodedLayout(VALUE_TYPES["bfloat16"]))
}
"""Those whose size depends on the weights."""
LAYOUTS: dict[str, Layout] = {
    layout.name: layout for structure in STRUCTURES for layout in map(structure, VALUE_TYPES.values())
}
LAYOUTS.update(CODED)
