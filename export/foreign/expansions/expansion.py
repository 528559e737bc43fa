"""What an expansion is: the nodes that it stands for, and the forms that it can be written in.

Legend: N out_features, K in_features, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from ...layouts.values import ValueType
from ..bodies import Body, Readers, ValueTypes
from ..document import Document
from ..weights import Constant, NotConstant, stored_bytes, trace


@dataclass(frozen=True)
class Context:
    """The model around an operator."""

    document: Document
    readers: Readers
    types: ValueTypes


class Emitter(Protocol):
    """Takes the nodes of a form, in order."""

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node; returns the names of its outputs, which are new where `outputs` is their number."""

    def constant(self, name: str, array: NDArray) -> str:
        """A new constant; returns its name, which is built on `name`."""

    def inner(self) -> "Emitter":
        """An emitter for a graph within a node: its nodes are its own, its constants those of this one."""

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes so far."""

    def fresh(self, name: str) -> str:
        """A new name, built on this one."""

    def product(self, place: int, x: str, bias: str = "", output: str = "") -> str:
        """The product of X [..., K] and the form's weight at `place`, plus the bias [N] where there is one."""


@dataclass(frozen=True)
class Matrix:
    """The weight W [N, K] of one product in a form.

    `values`: how its numbers are stored, where that is not what the user asks for. `activation_scale`: the one scale
    by which X is rounded, for values that round X.
    """

    values_NK: NDArray[np.float32]
    values: ValueType | None = None
    activation_scale: float = 0.0


@dataclass(frozen=True)
class Form:
    """One way to write an expansion: its products' weights, and what adds its nodes.

    The nodes write the values that those of the expansion write, under the same names. `title` says in words what the
    form is, `extra_bytes` what its other constants take.
    """

    title: str
    matrices: tuple[Matrix, ...]
    write: Callable[[Emitter], None]
    extra_bytes: int = 0


Feeds = dict[str, NDArray]


@dataclass(frozen=True)
class Expansion:
    """An operator that can be written out.

    Attributes:
        places: the nodes that it stands for, the operator first.
        weight: what the operator multiplies by.
        others: all constants that it needs no more.
        forms: makes the forms; raises ValueError where there is none, with the reason.
        feeds: made-up inputs, for a number of tokens; those that no node reads are passed over.
        around: nodes that are timed with it, since ONNX Runtime fuses them with it; they stay.
        shape: of the operator's weight, where its forms' matrices have other shapes.
        timed_on: in words, the one input that it is timed on, where that has no number of tokens.
        gain: how many times as fast a form must be.
        more_weights: what the operator multiplies by besides.
    """

    body: Body
    places: tuple[int, ...]
    weight: Constant
    others: tuple[Constant, ...]
    forms: Callable[[Document], list[Form]]
    feeds: Callable[[int, np.random.Generator], Feeds]
    around: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    timed_on: str = ""
    gain: float = 1.0
    more_weights: tuple[Constant, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """What the file holds for its weights."""
        return sum(map(stored_bytes, (self.weight, *self.more_weights)))

    @property
    def node(self) -> NodeProto:
        """The operator."""
        return self.body.nodes[self.places[0]]


def constant_at(body: Body, node: NodeProto, place: int) -> Constant | None:
    """The constant that an input of a node is; None where it is absent or not constant."""
    return constant_named(body, input_at(node, place))


def constant_named(body: Body, name: str) -> Constant | None:
    """The constant of this name; None where it is none, or the name is ""."""
    found = trace(body, name) if name else None
    return None if isinstance(found, NotConstant) else found


def input_at(node: NodeProto, place: int) -> str:
    """The name of an input, "" where it is absent."""
    return node.input[place] if place < len(node.input) else ""


def constants_of_node(body: Body, node: NodeProto) -> tuple[Constant, ...]:
    """All inputs of a node that are constant."""
    found = (constant_at(body, node, place) for place in range(len(node.input)))
    return tuple(constant for constant in found if constant is not None)
