"""Graphs within graphs: the main graph, bodies of If, Loop and Scan, and bodies of model-local functions.

A name in a subgraph may be one of an enclosing graph. `Body.find` resolves it as ONNX does: innermost first. Function
bodies see their own inputs only.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

FunctionKey = tuple[str, str, str]
"""Domain, name and overload of a model-local function."""


@dataclass(eq=False)
class Body:
    """One list of nodes and the names it defines.

    `title` is where it is, in words ("" for the main graph); `nodes` are its nodes when it was read, and their places
    in this list are their identity; `producers` maps a value to the place of the node that writes it;
    `sparse_initializers` are those in ONNX's own sparse form; `folded` are weights that constant nodes compute, from
    `folding`.
    """

    proto: GraphProto | FunctionProto
    title: str
    parent: "Body | None"
    nodes: list[NodeProto] = field(init=False)
    initializers: dict[str, TensorProto] = field(init=False)
    inputs: frozenset[str] = field(init=False)
    outputs: frozenset[str] = field(init=False)
    producers: dict[str, int] = field(init=False)
    sparse_initializers: dict[str, SparseTensorProto] = field(init=False)
    folded: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        proto = self.proto
        self.nodes = list(proto.node)
        self.producers = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        if isinstance(proto, GraphProto):
            self.initializers = {tensor.name: tensor for tensor in proto.initializer}
            self.inputs = frozenset(value.name for value in proto.input)
            self.outputs = frozenset(value.name for value in proto.output)
            self.sparse_initializers = {tensor.values.name: tensor for tensor in proto.sparse_initializer}
        else:
            self.initializers, self.sparse_initializers = {}, {}
            self.inputs, self.outputs = frozenset(proto.input), frozenset(proto.output)

    @property
    def is_function(self) -> bool:
        """Whether this is a function's body, where constants must be nodes."""
        return isinstance(self.proto, FunctionProto)

    @property
    def root(self) -> "Body":
        """The main graph or function body that this lies in."""
        return self if self.parent is None else self.parent.root

    def defines(self, name: str) -> bool:
        """Whether a value of this name is made here."""
        places = (self.producers, self.initializers, self.inputs, self.sparse_initializers)
        return any(name in place for place in places)

    def find(self, name: str) -> "Body | None":
        """The body that defines a value visible here, or None."""
        body: Body | None = self
        while body is not None and not body.defines(name):
            body = body.parent
        return body


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs in a node's attributes, with the attribute's name."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def node_title(node: NodeProto) -> str:
    """A node's name, or where it has none its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def all_bodies(model: ModelProto) -> list[Body]:
    """Every body of a model, inner ones before the one they lie in; the order depends on the structure only."""
    bodies: list[Body] = []
    _collect(model.graph, "", None, bodies)
    for function in model.functions:
        _collect(function, f"function {function.domain}.{function.name}", None, bodies)
    return bodies


def _collect(proto: GraphProto | FunctionProto, title: str, parent: Body | None, bodies: list[Body]) -> None:
    body = Body(proto, title, parent)
    for node in body.nodes:
        for attribute, graph in subgraphs(node):
            prefix = f"{title}/" if title else ""
            _collect(graph, f"{prefix}{node_title(node)}/{attribute}", body, bodies)
    bodies.append(body)


def function_key(item: NodeProto | FunctionProto) -> FunctionKey:
    """What a call and the function it calls have in common."""
    name = item.op_type if isinstance(item, NodeProto) else item.name
    domain = "" if item.domain == "ai.onnx" else item.domain
    return domain, name, item.overload


class Readers:
    """Who reads each value: `of(body, name)` lists (body, place of the node), with place None for a graph output."""

    def __init__(self, bodies: list[Body]) -> None:
        self._readers: dict[tuple[int, str], list[tuple[Body, int | None]]] = defaultdict(list)
        for body in bodies:
            for place, node in enumerate(body.nodes):
                for name in node.input:
                    self._add(body, name, place)
            for name in body.outputs:
                self._add(body, name, None)

    def of(self, body: Body, name: str) -> list[tuple[Body, int | None]]:
        """The readers of the value `name` that `body` defines."""
        return self._readers[id(body), name]

    def _add(self, body: Body, name: str, place: int | None) -> None:
        owner = body.find(name) if name else None
        if owner is not None:
            self._readers[id(owner), name].append((body, place))


class ValueTypes:
    """Ranks of values, as far as shape inference can tell.

    Args:
        model: a sound model; it is not changed.
        bodies: its bodies, from `all_bodies`.
    """

    def __init__(self, model: ModelProto, bodies: list[Body]) -> None:
        try:
            inferred = all_bodies(onnx.shape_inference.infer_shapes(model))
        except Exception:  # Inference has no exception class of its own; unknown ranks make a packed form unavailable,
            inferred = bodies  # with the reason in the report, and nothing else depends on them.
        self._ranks = {id(body): _ranks(twin.proto) for body, twin in zip(bodies, inferred, strict=True)}

    def rank(self, body: Body, name: str) -> int | None:
        """Number of dimensions of a value visible in `body`, None where it is unknown."""
        owner = body.find(name)
        return None if owner is None else self._ranks[id(owner)].get(name)


def _ranks(proto: GraphProto | FunctionProto) -> dict[str, int]:
    values = list(proto.value_info)
    ranks: dict[str, int] = {}
    if isinstance(proto, GraphProto):
        values += [*proto.input, *proto.output]
        ranks = {tensor.name: len(tensor.dims) for tensor in proto.initializer}
    for value in values:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
