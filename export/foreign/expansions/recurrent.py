"""LSTM and GRU: the products of the inputs of all steps at once, and a Scan over the steps.

Legend: T steps, B batch, I input features, H hidden features, G gates (4 of an LSTM, 3 of a GRU), D directions.
Gates are in ONNX's order: input, output, forget, cell; update, reset, hidden.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from ..bodies import Body
from ..document import Document
from ..left_weights import attributes_of
from ..linears import shape_of
from ..rewriting import STEP_GRAPH
from ..weights import load
from .expansion import Context, Emitter, Expansion, Feeds, Form, Matrix, constant_at, constants_of_node, input_at

_DIRECTIONS: dict[bytes, tuple[int, ...]] = {b"forward": (0,), b"reverse": (1,), b"bidirectional": (0, 1)}
"""Of each direction, whether it starts at the end."""
_DEFAULTS = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}
_STEPS = 16
_SMALLEST = 1 << 17
"""Recurrent weights below this, of all gates, are faster in ONNX Runtime's kernel than a Scan over a packed one."""


def recurrent(body: Body, place: int, context: Context) -> Expansion | str:
    """LSTM or GRU(X, W, R, bias, lengths, initial h, initial c, peepholes), with the usual activations."""
    del context
    node = body.nodes[place]
    attributes = attributes_of(node)
    w, r, bias = (constant_at(body, node, index) for index in (1, 2, 3))
    if w is None or r is None or len(shape_of(r)) != 3 or (input_at(node, 3) and bias is None):
        return "its weights are computed"
    if input_at(node, 4) or input_at(node, 7) or attributes.get("layout", 0):
        return "it has lengths, peepholes or another layout"
    given = attributes.get("activations")
    directions = _DIRECTIONS.get(attributes.get("direction", b"forward"), ())
    if given not in (None, _DEFAULTS[node.op_type] * len(directions)) or {"clip", "input_forget"} & attributes.keys():
        return "its activations are not the usual ones"
    hidden, columns = shape_of(r)[2], shape_of(w)[2]
    if shape_of(r)[0] != len(directions) or int(np.prod(shape_of(r)[1:])) < _SMALLEST:
        return "recurrent weights of this size are faster as they are"
    reset_first = not attributes.get("linear_before_reset", 0)

    def forms(document: Document) -> list[Form]:
        gates_w, gates_r = load(w, document), load(r, document)
        if gates_w.dtype != np.float32 or gates_r.dtype != np.float32:
            raise ValueError(f"its weights are {gates_w.dtype}")
        count = shape_of(r)[1] // hidden
        bias_DN = np.zeros((len(directions), 2 * count * hidden), np.float32) if bias is None else load(bias, document)
        matrices: list[Matrix] = []
        cells = []
        for index in range(len(directions)):
            cell = _lstm if node.op_type == "LSTM" else partial(_gru, reset_first=reset_first)
            parts = [gates_r[index]]
            if node.op_type == "GRU":
                parts = [gates_r[index][: 2 * hidden], gates_r[index][2 * hidden :]]
            cells.append((len(matrices), cell, np.split(bias_DN[index], 2)))
            matrices += [Matrix(np.ascontiguousarray(part)) for part in (gates_w[index], *parts)]
        write = partial(_write, node=node, cells=cells, directions=directions, hidden=hidden, reset_first=reset_first)
        return [Form("in a Scan over the steps", tuple(matrices), write)]

    def feeds(tokens: int, rng: np.random.Generator) -> Feeds:
        x = rng.standard_normal((_STEPS, tokens, columns)).astype(np.float32)
        start = np.zeros((len(directions), tokens, hidden), np.float32)
        return {node.input[0]: x, **{name: start for name in node.input[5:7] if name}}

    shape = (shape_of(w)[0], shape_of(w)[1], columns + hidden)
    words = f"{_STEPS} steps of one sequence"
    others = constants_of_node(body, node)
    return Expansion(body, (place,), w, others, forms, feeds, shape=shape, timed_on=words, more_weights=(r,))


Cell = Callable[..., list[str]]


def _write(
    emitter: Emitter,
    node: NodeProto,
    cells: list[tuple[int, Cell, list[NDArray]]],
    directions: tuple[int, ...],
    hidden: int,
    reset_first: bool,
) -> None:
    """All directions, and the outputs that the node has."""
    is_lstm = node.op_type == "LSTM"
    starts = [input_at(node, place) for place in ((5, 6) if is_lstm else (5,))]
    found = [
        _direction(emitter, node, index, cells[index], hidden, starts, backwards, reset_first)
        for index, backwards in enumerate(directions)
    ]  # of each direction: the last states [B, H], and h of all steps [T, B, H]
    first, second = (emitter.constant(f"{node.output[0]}.axis", np.array([axis], np.int64)) for axis in (0, 1))
    wanted = [(node.output[0], [item[-1] for item in found], second)]
    wanted += [(name, [item[place] for item in found], first) for place, name in enumerate(node.output[1:3])]
    for name, values, axis in wanted:
        if name:
            raised = [emitter.node("Unsqueeze", [value, axis])[0] for value in values]
            emitter.node("Concat", raised, [name], axis=1 if axis == second else 0)


def _direction(
    emitter: Emitter,
    node: NodeProto,
    index: int,
    cell: tuple[int, Cell, list[NDArray]],
    hidden: int,
    starts: list[str],
    backwards: int,
    reset_first: bool,
) -> list[str]:
    place, step, (bias_w, bias_r) = cell
    folded = bias_w + bias_r
    if node.op_type == "GRU" and not reset_first:
        folded = np.concatenate([folded[: 2 * hidden], bias_w[2 * hidden :]])
    bias = emitter.constant(f"{node.output[0]}.bias", np.ascontiguousarray(folded))
    gates = emitter.product(place, node.input[0], bias)
    states = [_start(emitter, node, index, name, hidden) for name in starts]
    inner = emitter.inner()
    names = [emitter.fresh(f"{node.output[0]}.state") for _ in states]
    gate = emitter.fresh(f"{node.output[0]}.gates")
    after = step(inner, place + 1, gate, names, hidden, bias_r[2 * hidden :])
    (shown,) = inner.node("Identity", [after[0]])
    ends = [_float(name, hidden) for name in (*after, shown)]
    starts_of_step = [*(_float(name, hidden) for name in names), _float(gate, None)]
    graph = helper.make_graph(inner.nodes, STEP_GRAPH, starts_of_step, ends)
    return emitter.node(
        "Scan",
        [*states, gates],
        len(states) + 1,
        body=graph,
        num_scan_inputs=1,
        scan_input_directions=[backwards],
        scan_output_directions=[backwards],
    )


def _float(name: str, features: int | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, features])


def _start(emitter: Emitter, node: NodeProto, index: int, name: str, hidden: int) -> str:
    """The first state [B, H] of a direction: what is given, or zeros."""

    def whole(array: list[int]) -> str:
        return emitter.constant(f"{node.output[0]}.number", np.array(array, np.int64))

    if name:
        (chosen,) = emitter.node("Slice", [name, whole([index]), whole([index + 1]), whole([0])])
        return emitter.node("Squeeze", [chosen, whole([0])])[0]
    (shape,) = emitter.node("Shape", [node.input[0]])
    (batch,) = emitter.node("Slice", [shape, whole([1]), whole([2]), whole([0])])
    (shape,) = emitter.node("Concat", [batch, whole([hidden])], axis=0)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    return emitter.node("ConstantOfShape", [shape], value=zero)[0]


def _lstm(emitter: Emitter, place: int, gates: str, states: list[str], hidden: int, bias_r: NDArray) -> list[str]:
    """One step of an LSTM: the next h and c."""
    del bias_r
    (total,) = emitter.node("Add", [gates, emitter.product(place, states[0])])
    sizes = emitter.constant(f"{gates}.sizes", np.full(4, hidden, np.int64))
    parts = emitter.node("Split", [total, sizes], 4, axis=-1)
    entered, shown, kept = (emitter.node("Sigmoid", [part])[0] for part in parts[:3])
    (new,) = emitter.node("Tanh", [parts[3]])
    (old,) = emitter.node("Mul", [kept, states[1]])
    (new,) = emitter.node("Mul", [entered, new])
    (cell,) = emitter.node("Add", [old, new])
    (squeezed,) = emitter.node("Tanh", [cell])
    return [*emitter.node("Mul", [shown, squeezed]), cell]


def _gru(
    emitter: Emitter, place: int, gates: str, states: list[str], hidden: int, bias_r: NDArray, reset_first: bool
) -> list[str]:
    """One step of a GRU: the next h."""
    sizes = emitter.constant(f"{gates}.sizes", np.array([2 * hidden, hidden], np.int64))
    halves = emitter.constant(f"{gates}.sizes", np.full(2, hidden, np.int64))
    both, candidate = emitter.node("Split", [gates, sizes], 2, axis=-1)
    (both,) = emitter.node("Add", [both, emitter.product(place, states[0])])
    (both,) = emitter.node("Sigmoid", [both])
    update, reset = emitter.node("Split", [both, halves], 2, axis=-1)
    if reset_first:
        (kept,) = emitter.node("Mul", [reset, states[0]])
        recurrence = emitter.product(place + 1, kept)
    else:
        bias = emitter.constant(f"{gates}.bias", np.ascontiguousarray(bias_r))
        (recurrence,) = emitter.node("Mul", [reset, emitter.product(place + 1, states[0], bias)])
    (candidate,) = emitter.node("Add", [candidate, recurrence])
    (candidate,) = emitter.node("Tanh", [candidate])
    # (1 - z) n + z h = n + z (h - n)
    (apart,) = emitter.node("Sub", [states[0], candidate])
    (apart,) = emitter.node("Mul", [update, apart])
    return emitter.node("Add", [candidate, apart])
