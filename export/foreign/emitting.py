"""The nodes of a form, written as they come."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto, helper

from ..layouts import DOMAIN
from .packed_weight import PackedWeight


class NodeEmitter:
    """An `expansions.expansion.Emitter` that keeps the nodes.

    Args:
        packed: the form's weights.
        tensors: names of the tensors of the weight at a place.
        fresh: a new name, built on the one given.
        add_constant: takes a constant of a new name, and returns that.
    """

    def __init__(
        self,
        packed: Sequence[PackedWeight],
        tensors: Callable[[int], list[str]],
        fresh: Callable[[str], str],
        add_constant: Callable[[str, NDArray], str],
    ) -> None:
        self._packed, self._tensors, self.fresh, self._add = packed, tensors, fresh, add_constant
        self.nodes: list[NodeProto] = []

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """See `Emitter.node`."""
        stem = next(filter(None, inputs), "value")
        count = outputs if isinstance(outputs, int) else 0
        names = [self.fresh(f"{stem}.{op_type.lower()}") for _ in range(count)] or list(outputs)  # type: ignore[arg-type]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, domain=domain, **attributes))
        return names

    def constant(self, name: str, array: NDArray) -> str:
        """See `Emitter.constant`."""
        return self._add(name, array)

    def inner(self) -> "NodeEmitter":
        """See `Emitter.inner`."""
        return NodeEmitter(self._packed, self._tensors, self.fresh, self._add)

    def product(self, place: int, x: str, bias: str = "", output: str = "") -> str:
        """See `Emitter.product`."""
        packed = self._packed[place]
        inputs = [x, *self._tensors(place), bias]
        outputs: Sequence[str] | int = [output] if output else 1
        return self.node(packed.op_type, inputs, outputs, DOMAIN, in_features=packed.in_features)[0]
