"""Whether an expansion is written out, and in which form: by times measured here, against the operator as it stands.

Legend: N out_features, K in_features, T tokens.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ....artifacts import CheckError
from ....kernels import library_path
from ...layouts import DOMAIN, DOMAIN_VERSION, Layout
from ..autotune import other_weights, timing
from ..bodies import node_title
from ..choosing import Decision, Times, candidates, check_gain
from ..differences import difference
from ..document import Document
from ..emitting import NodeEmitter
from ..files import quoted
from ..layer_check import ERROR_BOUNDS, open_session
from ..options import PackOptions
from ..packed_weight import PackedWeight
from ..weights import NotConstant, load, trace
from .expansion import Expansion, Feeds, Form, Matrix

_TOKENS = {"latency": (1, 16), "throughput": (64,), "size": (1,)}
"""Numbers of tokens at which a form must be faster, the objective's own first."""
_ROUNDS = 15
_SLOW = 0.1
"""Seconds of one call, from which on fewer rounds do."""
_FEW_ROUNDS = 5
_ALLOWED = 1e-4
"""Largest difference of a form's outputs, over the largest magnitude."""
_STEPS_ALLOWED = 0.02
"""Share of rounded outputs that may differ by one step."""
_OLDEST_IR = 10

PackMatrix = Callable[[Expansion, Matrix, NDArray[np.bool_], Layout], PackedWeight]
"""Packs the matrix of a form, which has this mask, in a layout."""


@dataclass(frozen=True)
class Written:
    """A form that can be chosen: with its weights packed, their layouts, and the bytes of all its constants."""

    form: Form
    layouts: tuple[Layout, ...]
    packed: tuple[PackedWeight, ...]
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """What becomes of an expansion: the form (None: it stays), why, its weights' shape and number of links, and how far
    the form's weights and outputs are off.
    """

    written: Written | None
    decision: Decision
    shape: tuple[int, ...]
    links: int
    errors: tuple[float, float] = (0.0, 0.0)


class Trial:
    """Decides for the expansions of one document.

    Args:
        document, options: of the run.
        model_bytes: of all its weights.
        pack_matrix: packs a weight for the document.
    """

    def __init__(self, document: Document, options: PackOptions, model_bytes: int, pack_matrix: PackMatrix) -> None:
        self._document, self._options, self._model_bytes = document, options, model_bytes
        self._pack = pack_matrix

    def decide(self, expansion: Expansion, stays: str | None) -> Outcome:
        """Choose for one expansion; `stays` says what else reads the weight.

        Raises:
            ValueError: it has no form, with the reason.
            UntimedError: ONNX Runtime does not run it alone.
            CheckError: a form does not compute what the operator does.
        """
        forms = expansion.forms(self._document)
        first = forms[0].matrices
        links = sum(int(np.count_nonzero(matrix.values_NK)) for matrix in first)
        shape = expansion.shape or first[0].values_NK.shape
        stored = expansion.stored_bytes

        def left(reason: str, times: Times | None = None) -> Outcome:
            return Outcome(None, Decision(None, stored, f"left: {reason}", times), shape, links)

        if links == math.prod(shape):
            return left("none of its weights is zero")
        if not links:
            return left("all of its weights are zero")
        if not all(np.isfinite(matrix.values_NK).all() for matrix in first):
            return left("it has infinite or NaN weights")
        written = [self._written(expansion, form) for form in forms]
        smaller = [item for item in written if item.bytes < stored]
        if not smaller:
            size = min(item.bytes for item in written)
            return left(f"packed it would take {size:,} bytes, the file holds it in {stored:,}")
        if stays is not None:
            return left(f"{stays}, so that packing would add {smaller[0].bytes:,} bytes")
        return self._fastest(expansion, smaller, stored, left)

    def _written(self, expansion: Expansion, form: Form) -> Written:
        layouts, packed, size = [], [], form.extra_bytes
        for matrix in form.matrices:
            mask_NK = matrix.values_NK != 0
            rows, columns = mask_NK.shape
            links = int(np.count_nonzero(mask_NK))
            fitting = _fitting(matrix, mask_NK, self._options)
            layout = min(fitting, key=lambda layout: layout.packed_bytes(rows, columns, links))
            size += layout.packed_bytes(rows, columns, links)
            layouts.append(layout)
            packed.append(self._pack(expansion, matrix, mask_NK, layout))
        return Written(form, tuple(layouts), tuple(packed), size)

    def _fastest(
        self, expansion: Expansion, written: list[Written], stored: int, left: Callable[..., Outcome]
    ) -> Outcome:
        tokens = (1,) if expansion.timed_on else _TOKENS[self._options.objective]
        models = [_dense_model(expansion, self._document)]
        models += [_packed_model(expansion, item, self._document) for item in written]
        with timing():
            times = self._times(expansion, models, tokens)  # of each model, for each number of tokens
        best = min(range(1, len(models)), key=lambda index: _worst(times[index], times[0]))
        found = Times(times[0][0], times[best][0], "us measured")
        figures = "; ".join(
            f"{expansion.timed_on or _tokens(count)}: {dense:.1f} us as it stands, {packed:.1f} us packed"
            for count, dense, packed in zip(tokens, times[0], times[best], strict=True)
        )
        chosen = written[best - 1]
        if _worst(times[best], times[0]) * expansion.gain >= 1 and self._options.objective != "size":
            return left(f"it is as fast or faster as it stands ({figures}; {chosen.form.title})", found)
        weight_error = _check_weights(expansion, chosen)
        exact = self._options.values == "float32" or all(matrix.values is not None for matrix in chosen.form.matrices)
        allowed = _ALLOWED if exact else ERROR_BOUNDS[self._options.values]
        error = _output_error(expansion, models[0], models[best], tokens[-1])
        if not error <= allowed:
            words = f"its packed form is off by {error:.1e} of its largest output"
            if not exact:
                return left(f"{words} with {self._options.values}", found)
            raise CheckError(f"layer {_title(expansion)}: {words}; nothing was published")
        reason = (
            f"{' and '.join(dict.fromkeys(layout.name for layout in chosen.layouts))}, {chosen.form.title}: {figures}"
        )
        decision = check_gain(Decision(chosen.layouts[0], chosen.bytes, reason, found), stored, None, self._options)
        outcome = left("")
        return replace(
            outcome,
            written=None if decision.layout is None else chosen,
            decision=decision,
            errors=(weight_error, error),
        )

    def _times(self, expansion: Expansion, models: list[ModelProto], tokens: Sequence[int]) -> list[list[float]]:
        """Microseconds of each model, for each number of tokens."""
        sessions = [open_session(models[0]), *(open_session(model, [str(library_path())]) for model in models[1:])]
        columns, others = [], other_weights(self._model_bytes, expansion.stored_bytes)
        for count in tokens:
            feeds = _given(models[0], expansion.feeds(count, np.random.default_rng(0)))
            columns.append(_quartiles([partial(session.run, None, feeds) for session in sessions], others))
        return [list(row) for row in zip(*columns, strict=True)]


def _fitting(matrix: Matrix, mask_NK: NDArray[np.bool_], options: PackOptions) -> list[Layout]:
    """The layouts that can hold a matrix."""
    if matrix.values is None:
        return candidates(mask_NK, options.values)
    fitting = candidates(mask_NK, matrix.values.name)
    return [type(layout)(matrix.values) for layout in fitting]  # type: ignore[call-arg]


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count > 1)}"


def _worst(times: list[float], dense: list[float]) -> float:
    """The largest time over that of the operator as it stands."""
    return max(time / whole for time, whole in zip(times, dense, strict=True))


def _quartiles(calls: list[Callable[[], object]], others: NDArray[np.int64]) -> list[float]:
    """Microseconds of each call, all in turn, each after `others` was read: the lower quartile, which another
    program's work hardly touches.
    """
    rounds: list[list[float]] = []
    limit = _ROUNDS
    while len(rounds) <= limit:
        seconds = []
        for call in calls:
            others.max(initial=0)
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        rounds.append(seconds)
        if sum(seconds) > _SLOW:
            limit = _FEW_ROUNDS
    return [
        float(np.quantile(column, 0.25)) * 1e6 for column in zip(*rounds[1:], strict=True)
    ]  # the first call allocates


def _check_weights(expansion: Expansion, written: Written) -> float:
    """How far the decoded weights are off; raises CheckError where values that are kept do not come back."""
    worst = 0.0
    for matrix, layout, packed in zip(written.form.matrices, written.layouts, written.packed, strict=True):
        decoded_NK, _ = layout.decode(packed.encode(), packed.in_features)
        error = float(np.abs(decoded_NK - matrix.values_NK).max() / np.abs(matrix.values_NK).max())
        if error and (matrix.values is not None or layout.values.name == "float32"):
            raise CheckError(
                f"layer {_title(expansion)}: decoding does not give back its weights; nothing was published"
            )
        worst = max(worst, error)
    return worst


def _title(expansion: Expansion) -> str:
    return quoted(node_title(expansion.node))


def _output_error(expansion: Expansion, dense: ModelProto, packed: ModelProto, tokens: int) -> float:
    """How far the packed form is from the operator, in plain ONNX Runtime and with the op library."""
    feeds = _given(dense, expansion.feeds(tokens, np.random.default_rng(1)))
    expected, worst = open_session(dense).run(None, feeds), 0.0
    for libraries in ([], [str(library_path())]):
        actual = open_session(packed, libraries).run(None, feeds)
        worst = max(worst, *(_off(a, b) for a, b in zip(actual, expected, strict=True)))
    return worst


def _off(actual: NDArray, expected: NDArray) -> float:
    """The difference of two outputs; of rounded ones a few may differ by a step."""
    if expected.dtype in (np.uint8, np.int8) and actual.shape == expected.shape:
        steps = np.abs(actual.astype(np.int32) - expected.astype(np.int32))
        return 0.0 if steps.max(initial=0) <= 1 and steps.mean() <= _STEPS_ALLOWED else float(steps.max())
    return difference([actual], [expected])


def _dense_model(expansion: Expansion, document: Document) -> ModelProto:
    """The operator as it stands, alone but for the nodes around it."""
    places = sorted({*expansion.places, *expansion.around})
    return _model(expansion, document, [expansion.body.nodes[place] for place in places], [], [])


def _packed_model(expansion: Expansion, written: Written, document: Document) -> ModelProto:
    """The same with the operator written out."""
    body, last = expansion.body, max(expansion.places)
    encoded = [packed.encode() for packed in written.packed]
    arrays = {f"{place}.{name}": array for place, parts in enumerate(encoded) for name, array in parts.items()}
    taken = {name for node in body.nodes for name in (*node.input, *node.output)}

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    def add(name: str, array: NDArray) -> str:
        arrays[found := fresh(name)] = array
        return found

    emitter = NodeEmitter(written.packed, lambda place: [f"{place}.{name}" for name in encoded[place]], fresh, add)
    written.form.write(emitter)
    before = [body.nodes[place] for place in sorted(expansion.around) if place < last]
    after = [body.nodes[place] for place in sorted(expansion.around) if place > last]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    functions = {packed.op_type: packed.function for packed in written.packed}
    return _model(expansion, document, [*before, *emitter.nodes, *after], initializers, list(functions.values()))


def _model(
    expansion: Expansion,
    document: Document,
    nodes: list[NodeProto],
    initializers: list[onnx.TensorProto],
    functions: list[onnx.FunctionProto],
) -> ModelProto:
    """A model of these nodes: what they read and do not write is constant, or an input of those that are made up."""
    written = {name for node in nodes for name in node.output} | {tensor.name for tensor in initializers}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in written)
    made_up = expansion.feeds(1, np.random.default_rng(0))
    inputs, tensors = [], list(initializers)
    for name in read:
        constant = trace(expansion.body, name)
        if not isinstance(constant, NotConstant):
            tensors.append(numpy_helper.from_array(load(constant, document), name))
        elif name in made_up:
            kind = helper.np_dtype_to_tensor_dtype(made_up[name].dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, [None] * made_up[name].ndim))
        else:
            raise ValueError(f"no input {quoted(name)} can be made up, to time it")
    ends = [expansion.body.nodes[place] for place in (*expansion.places, *expansion.around)]
    inner = {name for node in ends for name in node.input}
    outputs = dict.fromkeys(name for node in ends for name in node.output if name and name not in inner)
    graph = helper.make_graph(nodes, "layer", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    opsets = [entry for entry in document.proto.opset_import if entry.domain != DOMAIN]
    return helper.make_model(
        graph,
        opset_imports=[*opsets, helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=max(_OLDEST_IR, document.proto.ir_version),
        functions=functions,
    )


def _given(model: ModelProto, feeds: Feeds) -> Feeds:
    return {value.name: feeds[value.name] for value in model.graph.input}
