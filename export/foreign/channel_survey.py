"""What the rules on channels know of the graph they look at: constants, who reads what, and shapes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, helper

from .bodies import Body, Readers, ValueTypes
from .channels import ChannelGraph, Channels
from .document import Document
from .weights import Derived, Folded, NotConstant, Stored, load, parts_of, trace

_SMALL = 1024
"""Elements of a constant up to which a second copy is no matter."""
_STEPS = ("Identity", "Transpose", "Cast")
"""Steps between a stored weight and its use that a smaller copy of the result can stand for."""


@dataclass
class Survey:
    """The main graph under examination, and what was found so far."""

    document: Document
    body: Body
    readers: Readers
    types: ValueTypes
    found: ChannelGraph = field(default_factory=ChannelGraph)

    def channels(self, name: str) -> Channels | None:
        """Those of a value, None where it has none that are known."""
        return self.found.values.get(name)

    def constant(self, name: str) -> NDArray | None:
        """The values of a constant that is not quantised; None where it is none, or may be replaced by a caller."""
        traced = trace(self.body, name) if name else None
        if traced is None or isinstance(traced, NotConstant):
            return None
        steps = [part.node.op_type for part in parts_of(traced) if isinstance(part, Derived)]
        if not isinstance(traced, Folded) and any(step not in _STEPS for step in steps):
            return None
        try:
            return load(traced, self.document)
        except ValueError:
            return None  # the file does not fit together there; the runtime says what

    def own_constant(self, name: str) -> NDArray | None:
        """As `constant`, where a smaller copy can take the place of what is stored: nothing else needs that."""
        traced = trace(self.body, name) if name else None
        if traced is None or isinstance(traced, NotConstant):
            return None
        for part in parts_of(traced):
            if isinstance(part, Stored) and isinstance(part.tensor, SparseTensorProto):
                return None
            big = not isinstance(part, Stored) or np.prod(list(part.tensor.dims)) > _SMALL
            if part.owner is not self.body or (big and len(self.readers.of(part.owner, part.name)) != 1):
                return None
        return self.constant(name)

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a value, None where it is unknown."""
        return self.types.rank(self.body, name)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a value, as far as they are known."""
        return self.types.shape(self.body, name)

    def position(self, channels: Channels) -> int | None:
        """The axis of channels, counted from the front; None where the number of dimensions is unknown."""
        rank = self.rank(channels.name)
        return None if rank is None or rank + channels.axis < 0 else rank + channels.axis


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def given(node: NodeProto, place: int) -> str:
    """The name of an input, "" where it is absent."""
    return node.input[place] if place < len(node.input) else ""
