"""Weights that constant nodes compute: a mask times a weight, a slice of a larger one, what a function gives.

They are found here and computed by ONNX Runtime, so that no rule of ours says what an operator does. Only what a
product needs is computed; chains that `weights` follows stay chains, so that quantised weights stay integers.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from .bodies import Body, function_key, subgraphs
from .document import Document
from .isolation import run_isolated
from .operators import weight_places
from .weights import Derived, Folded, Stored, has_references, is_step, trace_stored
from .writing import ModelWriter

_RUNNER = Path(__file__).with_name("folding_run.py")
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""Operators that give another value each time."""
_NOT_FOLDED = RANDOM | {"Dropout"}  # which may
_GROWTH = 4
_MOST_ELEMENTS = 1 << 22
"""Folded weights have at most so many elements, or so many times those that the file stores for them."""
_IR_VERSION = 10

Value = tuple[Body, str]


class Constants:
    """Which values of a model are constant: stored, or computed from such by nodes without chance or subgraphs."""

    def __init__(self, document: Document, bodies: Sequence[Body]) -> None:
        functions = document.proto.functions
        self._chance = any(node.op_type in _NOT_FOLDED or any(subgraphs(node)) for f in functions for node in f.node)
        self._functions = {function_key(function) for function in functions}
        self._computed: dict[int, set[str]] = {id(body): set() for body in bodies}
        for body in reversed(bodies):  # outer ones first
            for node in body.nodes:
                if self._is_constant(body, node):
                    self._computed[id(body)].update(filter(None, node.output))

    def computed(self, body: Body, name: str) -> Body | None:
        """The body whose node computes this value from constants, or None."""
        owner = body.find(name)
        return owner if owner is not None and name in self._computed[id(owner)] else None

    def _is_constant(self, body: Body, node: NodeProto) -> bool:
        if node.op_type == "Constant" or not node.input or node.op_type in _NOT_FOLDED or has_references(node):
            return False
        if any(subgraphs(node)) or (self._chance and function_key(node) in self._functions):
            return False
        return all(self._known(body, name) for name in node.input if name)

    def _known(self, body: Body, name: str) -> bool:
        return self.computed(body, name) is not None or trace_stored(body, name) is not None


@dataclass(frozen=True)
class _Root:
    """A value to compute: all nodes and stored tensors that it needs, the nodes in an order that they can run in."""

    owner: Body
    name: str
    steps: list[Derived]
    stored: list[Stored]


def fold_weights(document: Document, bodies: Sequence[Body], scratch: Path) -> list[str]:
    """Compute the weights that constant nodes make, and note them in their bodies; returns notes for the report.

    Args:
        document, bodies: the model; the bodies' `folded` is filled.
        scratch: a directory for the models that are computed.
    """
    constants, notes = Constants(document, bodies), []
    for body in bodies:
        roots = [_trace_root(root, constants) for root in _roots_in(body, constants)]
        if roots and (fault := _fold(document, body, roots, scratch)):
            notes.append(f"constant nodes before weights could not be computed, so these weights are left: {fault}")
    return notes


def _roots_in(body: Body, constants: Constants) -> list[Value]:
    """What products of a body multiply by and constant nodes compute, each once."""
    roots: dict[tuple[int, str], Value] = {}
    for node in body.nodes:
        for place in weight_places(node):
            root = _root(body, node.input[place], constants)
            if root is not None and root[1] not in root[0].folded:
                roots[id(root[0]), root[1]] = root
    return list(roots.values())


def _root(body: Body, name: str, constants: Constants) -> Value | None:
    """Back through the steps that `weights` takes itself, to the value that another node computes."""
    owner = constants.computed(body, name)
    while owner is not None:
        node = owner.nodes[owner.producers[name]]
        if not is_step(node, name) or any(trace_stored(owner, side) is None for side in node.input[1:] if side):
            return owner, name
        name = node.input[0]
        owner = constants.computed(owner, name)
    return None


def _trace_root(root: Value, constants: Constants) -> _Root:
    steps: dict[tuple[int, int], Derived] = {}
    stored: dict[tuple[int, str], Stored] = {}
    pending = [root]
    seen = set()
    while pending:
        body, name = pending.pop()
        owner = constants.computed(body, name)
        if owner is None:
            tensor = trace_stored(body, name)
            assert tensor is not None, "constants are stored or computed"
            stored[id(tensor.owner), tensor.name] = tensor
        elif (id(owner), place := owner.producers[name]) not in seen:
            seen.add((id(owner), place))
            steps[id(owner), place] = Derived(owner, name, place, ())
            pending += [(owner, source) for source in owner.nodes[place].input if source]
    # Enclosing graphs come first: what is inside reads them.
    ordered = sorted(steps.values(), key=lambda step: (_depth(step.owner), step.place))
    return _Root(root[0], root[1], ordered, list(stored.values()))


def _depth(body: Body) -> int:
    return 0 if body.parent is None else 1 + _depth(body.parent)


def _fold(document: Document, body: Body, roots: list[_Root], scratch: Path) -> str | None:
    """Compute the roots of one body; returns the reason where that fails."""
    elements = sum(_elements(tensor) for tensor in _distinct(roots))
    model, out = scratch / "folding.onnx", scratch / f"folded_{id(body)}.npz"
    with ModelWriter(model, document.files) as writer:
        writer.save(_model(document, roots))
    try:
        done = run_isolated(_RUNNER, str(model), str(max(_MOST_ELEMENTS, _GROWTH * elements)), str(out))
    except subprocess.TimeoutExpired:
        return "it does not end"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["it died"])[-1].replace(f"{scratch}/", "")[:300]
    shares = Counter((id(tensor.owner), tensor.name) for root in roots for tensor in root.stored)
    for root, array in zip(roots, _arrays(out, len(roots)), strict=True):
        size = sum(tensor.bytes // shares[id(tensor.owner), tensor.name] for tensor in root.stored)
        parts: tuple[Derived | Stored, ...] = (*root.steps, *root.stored)
        root.owner.folded[root.name] = Folded(root.owner, root.name, array, parts, size)
    return None


def _arrays(path: Path, count: int) -> Iterator[NDArray]:
    with np.load(path, allow_pickle=False) as archive:
        for place in range(count):
            yield archive[str(place)]


def _distinct(roots: list[_Root]) -> list[Stored]:
    return list({(id(tensor.owner), tensor.name): tensor for root in roots for tensor in root.stored}.values())


def _elements(tensor: Stored) -> int:
    return int(np.prod(list(tensor.tensor.dims), dtype=object))


def _model(document: Document, roots: list[_Root]) -> ModelProto:
    """A model without inputs that writes the roots. Constant tensors are copied under the names that nodes read."""
    graph = helper.make_graph([], "folding", [], [ValueInfoProto(name=root.name) for root in roots])
    for stored in _distinct(roots):
        if isinstance(stored.tensor, TensorProto):
            graph.initializer.add().CopyFrom(stored.tensor)
            graph.initializer[-1].name = stored.name
        else:
            graph.sparse_initializer.add().CopyFrom(stored.tensor)
            graph.sparse_initializer[-1].values.name = stored.name
    steps = {(id(step.owner), step.place): step for root in roots for step in root.steps}
    for step in sorted(steps.values(), key=lambda step: (_depth(step.owner), step.place)):
        graph.node.add().CopyFrom(step.node)
    opsets, functions = document.proto.opset_import, document.proto.functions
    version = max(document.proto.ir_version, _IR_VERSION if functions else 0)
    return helper.make_model(graph, opset_imports=list(opsets), functions=list(functions), ir_version=version)
