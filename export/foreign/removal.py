"""Channels that do nothing are removed from the graph before anything is packed.

A channel of a linear layer or convolution does nothing where its weights are zero, so that it is a known constant, or
where nobody reads it: all weights that take it are zero. What a constant adds to the next layer goes into that layer's
bias. The model computes the same, up to the order of its sums. A channel stays where an operator that needs all of them
reads it (a Softmax, a LayerNormalization, a Reshape), or the graph's output does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from .bodies import Readers, ValueTypes, all_bodies, node_title, subgraphs
from .channel_rules import apply_rule
from .channel_survey import Survey, given
from .channels import Fold, kept_names
from .document import Document
from .folding import fold_weights
from .weights import Derived, NotConstant, Stored, parts_of, trace

_MOST_BYTES = 1 << 30
"""Smaller copies of weights are held in memory until the model is written; beyond so much nothing is removed."""


@dataclass(frozen=True)
class Removed:
    """What was removed: for each layer its name, how many output channels it has lost, and how many it had."""

    layers: tuple[tuple[str, int, int], ...] = ()

    @property
    def notes(self) -> list[str]:
        """One sentence, where there is something to say."""
        if not self.layers:
            return []
        lost, had = (sum(counts) for counts in zip(*(layer[1:] for layer in self.layers), strict=True))
        names = kept_names(f"{name} {gone:,} of {size:,}" for name, gone, size in self.layers)
        return [
            f"{lost:,} of the {had:,} output channels of {len(self.layers)} layers do nothing and are removed, with "
            f"all that belongs to them: {names}"
        ]


def remove_channels(document: Document, scratch: Path) -> Removed:
    """Remove what can be removed of the main graph.

    Args:
        document: the model; its content is changed.
        scratch: a directory for the weights that constant nodes compute.
    """
    survey = _examined(document, scratch)
    gone = survey.found.removable()
    if not gone.any():
        return Removed()
    editor = _Editor(survey, gone)
    if editor.weight_bytes() > _MOST_BYTES:
        return Removed()
    titles = {name: node_title(node) for node in survey.body.nodes for name in node.output}
    editor.apply()
    losses = ((name, survey.found.values[name].places) for name in survey.found.made)
    return Removed(
        tuple((titles[name], int(gone[places].sum()), len(places)) for name, places in losses if gone[places].any())
    )


def _examined(document: Document, scratch: Path) -> Survey:
    """Every node's rule applied, in the order of the graph."""
    bodies = all_bodies(document.proto)
    (main,) = (body for body in bodies if body.parent is None and not body.is_function)
    fold_weights(document, bodies, scratch)
    survey = Survey(document, main, Readers(bodies), ValueTypes(document.proto, bodies))
    for node in main.nodes:
        apply_rule(survey, node)
    for name, channels in survey.found.values.items():
        if any(body is not main or place is None for body, place in survey.readers.of(main, name)):
            survey.found.need(channels)  # the output of the graph, or read in the body of a branch or loop
    return survey


@dataclass
class _Editor:
    """Writes smaller constants into the graph."""

    survey: Survey
    gone: NDArray[np.bool_]
    _arrays: dict[tuple[int, int], NDArray] = field(default_factory=dict)
    _nodes: dict[int, NodeProto] = field(default_factory=dict)
    _old: list[str] = field(default_factory=list)

    def weight_bytes(self) -> int:
        """About what the changed weights take now."""
        found = self.survey.found
        changed = {
            (id(cut.node), cut.place): cut for cut in found.cuts if self.gone[cut.places].any() and cut.place == 1
        }
        traced = (trace(self.survey.body, given(cut.node, cut.place)) for cut in changed.values())
        stored = (part for item in traced if not isinstance(item, NotConstant) for part in parts_of(item))
        return sum(part.bytes for part in stored if isinstance(part, Stored))

    def apply(self) -> None:
        """Change the graph."""
        found, graph = self.survey.found, self.survey.body.proto
        assert isinstance(graph, GraphProto), "the main graph"
        sums = [item for fold in found.folds if (item := self._fold(fold)) is not None]
        for cut in found.cuts:
            self._cut(cut.node, cut.place, cut.axis, ~self.gone[cut.places])
        for key, array in self._arrays.items():
            self._write(self._nodes[key[0]], key[1], array)
        for node, channels in found.grouped:
            _set_integer(node, "group", int((~self.gone[channels.places]).sum()))
        for node, outputs in found.splits:
            if any(self.gone[part.places].any() for part in outputs):
                sizes = np.array([(~self.gone[part.places]).sum() for part in outputs], np.int64)
                self._write(node, 1, sizes)
                _drop_attribute(node, "num_outputs")
        _insert(graph, sums)
        changed = {name for name, channels in found.values.items() if self.gone[channels.places].any()}
        _filter(graph.value_info, lambda value: value.name not in changed)
        self._drop_unread(graph)

    def _array(self, node: NodeProto, place: int) -> NDArray | None:
        """The constant at an input, as far as it is changed already; None where the input is absent."""
        self._nodes[id(node)] = node
        if (id(node), place) not in self._arrays:
            array = self.survey.constant(given(node, place))
            if array is None:
                return None
            self._arrays[id(node), place] = array
        return self._arrays[id(node), place]

    def _fold(self, fold: Fold) -> tuple[NodeProto, NDArray] | None:
        """Add what constants make to the bias; returns a node that has none, with what is to be added behind it."""
        gone = self.gone[fold.channels.places] & (fold.channels.constants != 0)
        if not gone.any():
            return None
        sums_N = fold.terms[:, gone] @ fold.channels.constants[gone].astype(np.float64)
        dtype = fold.channels.constants.dtype
        if fold.bias_place is None:
            return fold.node, sums_N[~self.gone[fold.outputs]].astype(dtype)
        bias = self._array(fold.node, fold.bias_place)
        whole = sums_N if bias is None else sums_N + bias.reshape(-1)
        self._arrays[id(fold.node), fold.bias_place] = whole.astype(dtype)
        return None

    def _cut(self, node: NodeProto, place: int, axis: int, kept: NDArray[np.bool_]) -> None:
        if kept.all() or (array := self._array(node, place)) is None:
            return
        if array.ndim >= -axis and array.shape[axis] == len(kept):  # a number for all channels stays as it is
            self._arrays[id(node), place] = np.compress(kept, array, axis)

    def _write(self, node: NodeProto, place: int, array: NDArray) -> None:
        """Give a node a constant of its own."""
        graph, old = self.survey.body.proto, given(node, place)
        assert isinstance(graph, GraphProto), "the main graph"
        name = self._new_name(old or f"{node.output[0]}.constant_{place}")
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = name
        if old:
            self._old.append(old)

    def _new_name(self, base: str) -> str:
        body, number = self.survey.body, 0
        taken = {tensor.name for tensor in body.proto.initializer}  # type: ignore[union-attr]
        while (name := f"{base}.kept{number or ''}") in taken or body.defines(name):
            number += 1
        return name

    def _drop_unread(self, graph: GraphProto) -> None:
        """Constants that were replaced, and the nodes that made them, where nothing reads them any more."""
        candidates: set[str] = set()
        for name in self._old:
            traced = trace(self.survey.body, name)
            if not isinstance(traced, NotConstant):
                candidates |= {part.name for part in parts_of(traced) if isinstance(part, Derived | Stored)} | {name}
        while True:
            read = _read_names(graph)
            nodes = [
                node
                for node in graph.node
                if not set(node.output) & read and set(filter(None, node.output)) & candidates
            ]
            for node in nodes:
                graph.node.remove(node)
            if not nodes:
                break
        _filter(graph.initializer, lambda tensor: tensor.name in read or tensor.name not in candidates)


def _read_names(graph: GraphProto) -> set[str]:
    """Every name that a node reads, in the graph or in one inside it, and the outputs."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for _, inner in subgraphs(node):
            names |= _read_names(inner)
    return names


def _insert(graph: GraphProto, sums: Sequence[tuple[NodeProto, NDArray]]) -> None:
    """Behind each of the nodes an Add of constants."""
    for node, array in sums:
        place = next(place for place, other in enumerate(graph.node) if other is node or other == node)
        output = node.output[0]
        product, constants = f"{output}.product", f"{output}.constants"
        node.output[0] = product
        graph.initializer.append(numpy_helper.from_array(array, constants))
        graph.node.insert(place + 1, helper.make_node("Add", [product, constants], [output]))


def _filter(items: Any, keep: Callable[[Any], bool]) -> None:
    """Delete from a repeated field of protobuf, whose type has no name, all that is not to be kept."""
    for place in reversed(range(len(items))):
        if not keep(items[place]):
            del items[place]


def _set_integer(node: NodeProto, name: str, value: int) -> None:
    _drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _drop_attribute(node: NodeProto, name: str) -> None:
    _filter(node.attribute, lambda item: item.name != name)
