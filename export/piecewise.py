"""The portable graph run a piece at a time, so that the memory it takes is that of a piece and not of the model.

Legend: B slots, S tokens a slot, N rows of logits, V vocabulary, G key/value heads, C context length, D head size.

Stock ONNX Runtime runs a packed layer by its definition, which decodes it to a dense weight. A session of the whole
file decodes all layers at once: while it loads, or, told not to, in every step before it needs them, in an order that
is its own. Both take many times the memory of the model. So a large file is cut, in the order of its nodes, into pieces
of a packed layer or a few; every node and every tensor is the file's own. Each piece is loaded once and takes its part
of all steps, before the next one is loaded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..artifacts import LanguageModelFacts
from ..runtime.onnxruntime import check_rows
from ..runtime.portable import PortableRunner
from ..runtime.session import bind_input, bind_output, load_lean_session
from .layouts import DOMAIN
from .progress import each
from .steps import Logits, Prefill, Step, StepsRunner

WHOLE_CELLS = 4 << 20
"""A file with so many possible links in packed layers is run as a whole, as its users run it; so is a piece."""
FOLDED_CELLS = 160 << 20
"""A piece of more than this, which one layer of a model of over 13 billion parameters may be, is decoded in every step:
that takes half of the memory, which of this many is 4 GB, and a hundred times as long."""

_Tensors = dict[str, NDArray]


def open_portable(
    model: Path,
    facts: LanguageModelFacts,
    slots: int,
    cells: Mapping[str, int],
    progress: Callable[[str], None] = lambda stage: None,
) -> PortableRunner | StepsRunner:
    """A runner of a portable graph that takes little memory.

    Args:
        model: the ONNX file. facts: sizes. slots: sequences held. cells: the possible links of each packed layer.
        progress: told how many pieces of a large graph have run.

    Raises:
        InputError: ONNX Runtime cannot load the file.
    """
    if sum(cells.values()) <= WHOLE_CELLS:
        return PortableRunner(model, facts, slots)
    return PiecewiseRunner(model, facts, slots, cells, progress)


@dataclass(frozen=True)
class Piece:
    """Consecutive nodes of a graph as a model of their own.

    `inputs` and `outputs` name its values; `live` are those of any piece that later ones still read, and the outputs of
    the graph; `cells` counts the possible links of its packed layers.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    live: frozenset[str]
    cells: int


class PiecewiseRunner(StepsRunner):
    """Runs `model.onnx` a piece at a time; see `open_portable` for the arguments and errors."""

    def __init__(
        self,
        model: Path,
        facts: LanguageModelFacts,
        slots: int,
        cells: Mapping[str, int],
        progress: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.slots = slots
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size
        self._facts = facts
        self._path = model
        self._progress = progress
        # That the pieces load says nothing of what lies between them.
        load_lean_session(model, folded=False)
        self._pieces = cut(onnx.load_model(model, load_external_data=False), cells)

    def run(self, steps: Sequence[Step]) -> Iterator[Logits]:
        """See `StepsRunner.run`."""
        feeds = [_Feed.of(step) for step in steps]
        for feed in feeds:
            feed.check(self.slots, self.context_length)
        values = [feed.tensors() for feed in feeds]
        context = min(self.context_length, max((feed.end for feed in feeds), default=0))
        for piece in each(self._pieces[:-1], f"{self._path.name} in pieces", self._progress):
            for kept, made in zip(values, self._through(piece, feeds, values, context), strict=True):
                kept |= made
                for name in kept.keys() - piece.live:
                    del kept[name]
        for made in self._through(self._pieces[-1], feeds, values, context):
            yield made["logits"]

    def _through(
        self, piece: Piece, feeds: Sequence["_Feed"], values: Sequence[_Tensors], context: int
    ) -> Iterator[_Tensors]:
        """What a piece makes of each step's values; its session lives until the last one."""
        content, folded = piece.model.SerializeToString(), piece.cells <= FOLDED_CELLS
        session = load_lean_session(self._path, content, folded=folded)
        shape_BGCD = (self.slots, self._facts.num_kv_heads, context, self._facts.head_dim)
        caches = {name: np.zeros(shape_BGCD, np.float32) for name in piece.inputs if _is_past(name)}
        for feed, given in zip(feeds, values, strict=True):
            yield _run(session, piece, given, {name: cache[feed.slots] for name, cache in caches.items()})


@dataclass(frozen=True)
class _Feed:
    """A step as the graph takes it."""

    first_slot: int
    ids_BS: NDArray[np.int64]
    past_B: NDArray[np.int64]
    rows_N: NDArray[np.int64]

    @classmethod
    def of(cls, step: Step) -> "_Feed":
        if isinstance(step, Prefill):
            check_rows(step.rows_N, len(step.ids_S))
            return cls(step.slot, _row(step.ids_S)[None], _row([step.past]), _row(step.rows_N))
        return cls(step.first_slot, _row(step.ids_B)[:, None], _row(step.past_B), np.arange(len(step.ids_B)))

    @property
    def slots(self) -> slice:
        return slice(self.first_slot, self.first_slot + len(self.ids_BS))

    @property
    def end(self) -> int:
        """Tokens that the fullest slot holds after the step."""
        return int(self.past_B.max()) + self.ids_BS.shape[1]

    def check(self, slots: int, context_length: int) -> None:
        """Refuse a step that would reach outside the caches: the operator writes where it is told."""
        if not (self.first_slot >= 0 and self.slots.stop <= slots and self.end <= context_length):
            raise ValueError(f"a step to {self.end} tokens at {self.slots} does not fit {slots} x {context_length}")

    def tensors(self) -> _Tensors:
        ends_B = (self.past_B + self.ids_BS.shape[1]).astype(np.int32)
        return {
            "input_ids": self.ids_BS,
            "seqlens_k": ends_B - 1,
            "total_sequence_length": np.array(ends_B.max()),
            "logit_rows": self.rows_N,
        }


def cut(model: onnx.ModelProto, cells: Mapping[str, int]) -> list[Piece]:
    """The pieces of a portable graph, in order; together they have each of its nodes once.

    Args:
        model: without its external data. cells: the possible links of each packed layer.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in _inferred(model)}
    groups = list(_groups(model.graph.node, cells))
    pieces: list[Piece] = []
    later = {value.name for value in model.graph.output}
    for group in reversed(groups):
        piece = _piece(model, group, later, types, sum(_cells(node, cells) for node in group))
        pieces.insert(0, piece)
        later |= set(piece.inputs)
    return pieces


def _groups(nodes: Iterable[onnx.NodeProto], cells: Mapping[str, int]) -> Iterator[list[onnx.NodeProto]]:
    """Consecutive nodes; a group ends before the packed layer that would make it too large."""
    group: list[onnx.NodeProto] = []
    held = 0
    for node in nodes:
        size = _cells(node, cells)
        if size and held and held + size > WHOLE_CELLS:
            yield group
            group, held = [], 0
        group.append(node)
        held += size
    yield group


def _cells(node: onnx.NodeProto, cells: Mapping[str, int]) -> int:
    """Possible links of the layers that a node reads the packed tensors of."""
    if node.domain != DOMAIN:
        return 0
    return sum(cells.get(layer, 0) for layer in {name.rpartition(".")[0] for name in node.input})


def _inferred(model: onnx.ModelProto) -> Iterable[onnx.ValueInfoProto]:
    """What is known of the values between nodes: of those after a contrib op nothing, of whole numbers the type."""
    return onnx.shape_inference.infer_shapes(model).graph.value_info


def _piece(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], later: set[str], types: Mapping[str, int], cells: int
) -> Piece:
    """`later`: the values that later pieces read, and the graph's outputs; `types`: of values, where they are known."""
    graph = model.graph
    made = {name for node in nodes for name in node.output if name}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    stored = {tensor.name for tensor in initializers}
    inputs = tuple(name for name in read if name not in stored)
    outputs = tuple(name for node in nodes for name in node.output if name in later)
    declared = {value.name: value for value in (*graph.input, *graph.output)}

    def value(name: str) -> onnx.ValueInfoProto:
        # Shapes follow from the inputs of each step. What has no type is an activation.
        return helper.make_tensor_value_info(name, types.get(name) or TensorProto.FLOAT, None)

    part = helper.make_graph(
        nodes,
        graph.name,
        [declared.get(name) or value(name) for name in inputs],
        [declared.get(name) or value(name) for name in outputs],
        initializers,
    )
    whole = helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    return Piece(whole, inputs, outputs, frozenset(later), cells)


def _run(session: onnxruntime.InferenceSession, piece: Piece, given: _Tensors, caches: _Tensors) -> _Tensors:
    """The outputs of a piece for one step but for its caches, which are written in place."""
    io = session.io_binding()
    for name in piece.inputs:
        bind_input(io, name, caches[name] if name in caches else given[name])
    written = {_present(name): cache for name, cache in caches.items()}
    for name in piece.outputs:
        if name in written:
            bind_output(io, name, written[name])
        else:
            io.bind_output(name, "cpu")
    session.run_with_iobinding(io)
    pairs = zip(piece.outputs, io.get_outputs(), strict=True)
    return {name: value.numpy() for name, value in pairs if name not in written}


def _is_past(name: str) -> bool:
    return name.startswith("past_key_values.")


def _present(past: str) -> str:
    return past.replace("past_key_values.", "present.", 1)


def _row(values: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(values, np.int64).reshape(-1)
