"""Putting packed ops where products were, and removing what only those products read. Nothing else changes.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ..layouts import DOMAIN, DOMAIN_VERSION
from .bodies import Body, Readers, all_bodies
from .document import Document
from .emitting import NodeEmitter
from .linears import Linear, QuantisedInput, constants_of
from .opsets import OLDEST_IR_WITH_FUNCTIONS
from .packed_weight import PackedWeight
from .restoring import restoring_nodes, weight_function
from .weights import Constant, Stored
from .writing import ModelWriter

_FEW = 64
STEP_GRAPH = "ai.hebbline.step"
"""Name of a graph that stands for one step of a recurrent layer."""
Write = Callable[[NodeEmitter], None]


class Rewriter:
    """Collects replacements and applies them all at once.

    Args:
        document: the model; `apply` changes it.
        bodies: its bodies, from `all_bodies`.
        writer: takes the packed tensors as they come, so that they need not stay in memory.
    """

    def __init__(self, document: Document, bodies: Sequence[Body], writer: ModelWriter) -> None:
        self._document, self._bodies, self._writer = document, bodies, writer
        self._taken = {name for body in bodies for name in _names(body)}
        self._main = next(body for body in bodies if body.parent is None and not body.is_function)
        self._replaced: dict[tuple[int, int], list[NodeProto]] = {}
        self._dropped: set[tuple[int, int]] = set()
        self._constants: dict[int, list[NodeProto]] = {}
        self._tensor_names: dict[tuple[int, str], list[str]] = {}
        self._functions: dict[str, FunctionProto] = {}
        self._done: list[tuple[Body, list[Constant]]] = []
        self._restorable: dict[str, tuple[PackedWeight, list[str]]] = {}

    def replace(self, layer: Linear, packed: PackedWeight) -> None:
        """Note that a packed op stands for the layer. The same `packed.key` again shares the tensors."""
        scope = self._scope(layer.body)
        tensors = self._tensors(scope, packed)
        nodes = self._nodes(layer, packed, tensors, self._bias(layer, scope, packed.name))
        self._put(layer.body, layer.places, nodes, constants_of(layer))
        if packed.restorable is not None:
            self._restorable[packed.restorable.name] = packed, tensors

    def expand(
        self, body: Body, places: Sequence[int], needless: list[Constant], packed: Sequence[PackedWeight], write: Write
    ) -> None:
        """Note that nodes with packed ops among them, which `write` gives to an emitter, stand for those at `places`.

        `needless` are constants that the new nodes do not need.
        """
        scope = self._scope(body)
        tensors = [self._tensors(scope, item) for item in packed]
        emitter = NodeEmitter(packed, tensors.__getitem__, self._fresh, lambda *given: self._constant(scope, *given))
        write(emitter)
        product = next(node for node in emitter.nodes if node.domain == DOMAIN)
        _take_over(product, body.nodes[places[0]])
        self._put(body, places, emitter.nodes, needless)

    def _put(self, body: Body, places: Sequence[int], nodes: list[NodeProto], needless: list[Constant]) -> None:
        place = max(places)
        self._replaced[id(body), place] = nodes
        self._dropped.update((id(body), other) for other in places if other != place)
        self._done.append((body, needless))

    def _scope(self, body: Body) -> Body:
        """Where constants for a body's nodes are kept."""
        return self._main if not body.root.is_function else body.root

    def _tensors(self, scope: Body, packed: PackedWeight) -> list[str]:
        """Names of a packed weight's tensors, which are written once."""
        key = (id(scope), packed.key)
        if key not in self._tensor_names:
            parts = packed.encode().items()
            self._tensor_names[key] = [self._constant(scope, f"{packed.name}.{part}", array) for part, array in parts]
        self._functions[packed.op_type] = packed.function
        return self._tensor_names[key]

    def apply(self) -> None:
        """Change the document's model."""
        if not self._done:
            return
        for body in self._bodies:  # inner bodies first: rebuilding a list of nodes copies the graphs in them
            self._rebuild(body)
        self._prune()  # before functions are added, while bodies still have their places
        self._restore()
        self._import_domain()

    def _restore(self) -> None:
        """Dense weights that are read still are decoded from the packed ones, so that the file holds them once."""
        graph = self._main.proto
        assert isinstance(graph, GraphProto), "the main body is a graph"
        kept, nodes = [], []
        for tensor in graph.initializer:
            packed, tensors = self._restorable.get(tensor.name, (None, []))
            if packed is None or packed.restorable is None:
                kept.append(tensor)
                continue
            function = weight_function(packed.function)
            self._functions[function.name] = function
            nodes += restoring_nodes(packed.restorable, function, tensors, packed.in_features)
        if nodes:
            nodes += list(graph.node)
            for field, items in ((graph.initializer, kept), (graph.node, nodes)):
                del field[:]
                field.extend(items)  # type: ignore[arg-type]

    def _nodes(self, layer: Linear, packed: PackedWeight, tensors: list[str], bias: str) -> list[NodeProto]:
        """The packed op with what surrounds it; each step writes a new value, the last one the layer's output."""
        steps: list[tuple[str, list[str], dict[str, object]]] = []
        if layer.strides:
            steps.append(("Slice", self._slice(layer), {}))
        if layer.x_perm is not None:
            steps.append(("Transpose", [], {"perm": layer.x_perm}))
        if packed.element_type != TensorProto.FLOAT:
            steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
        product = len(steps)
        inputs = [*tensors, bias] if packed.no_bias else tensors
        steps.append((packed.op_type, inputs, {"domain": DOMAIN, "in_features": packed.in_features}))
        if bias and not packed.no_bias:
            steps.append(("Add", [bias], {}))
        if layer.alpha != 1:
            steps.append(("Mul", [self._scalar(layer, "alpha", layer.alpha)], {}))
        if packed.element_type != TensorProto.FLOAT:
            steps.append(("Cast", [], {"to": packed.element_type}))
        if layer.y_perm is not None:
            steps.append(("Transpose", [], {"perm": layer.y_perm}))
        before, addend = self._addend(layer, packed.element_type)
        if addend is not None:
            steps.append(("Add", [addend], {}))
        nodes, value = before, layer.x
        if layer.integers is not None:
            value = self._fresh(f"{layer.x}.centred")
            nodes.append(self._dequantised(layer, layer.integers, value))
        for index, (op_type, inputs, attributes) in enumerate(steps):
            last = index == len(steps) - 1
            output = layer.output if last else self._fresh(f"{layer.output}.{op_type.lower()}")
            nodes.append(helper.make_node(op_type, [value, *inputs], [output], **attributes))  # type: ignore[arg-type]
            value = output
            if index == product:
                _take_over(nodes[-1], layer.node)
        return nodes

    def _slice(self, layer: Linear) -> list[str]:
        """The inputs of a Slice that takes a convolution's strides."""
        scope = self._scope(layer.body)
        parts = stride_slice(layer.strides).items()
        return [self._constant(scope, f"{layer.output}.{name}", array) for name, array in parts]

    def _dequantised(self, layer: Linear, given: QuantisedInput, output: str) -> NodeProto:
        scope = self._scope(layer.body)
        zero = self._constant(scope, f"{output}.zero", np.array(given.centre, given.dtype))
        return helper.make_node("DequantizeLinear", [given.name, given.scale_name, zero], [output])

    def _addend(self, layer: Linear, element_type: int) -> tuple[list[NodeProto], str | None]:
        """Gemm's C times beta: nodes that make it, and its name."""
        if layer.addend is None:
            return [], None
        if layer.addend.scale == 1:
            return [], layer.addend.name
        scaled = self._fresh(f"{layer.output}.addend")
        scale = self._scalar(layer, "beta", layer.addend.scale, element_type)
        return [helper.make_node("Mul", [layer.addend.name, scale], [scaled])], scaled

    def _bias(self, layer: Linear, scope: Body, name: str) -> str:
        """The bias's own tensor where it is one row of N as it stands, else a new one; "" without bias."""
        if layer.bias_N is None:
            return ""
        if isinstance(layer.bias, Stored) and not layer.scaled and _is_row(layer.bias.tensor, layer.bias_N):
            return layer.bias.name
        return self._constant(scope, f"{name}.bias", layer.bias_N)

    def _scalar(self, layer: Linear, name: str, value: float, element_type: int = TensorProto.FLOAT) -> str:
        scope = self._scope(layer.body)
        return self._constant(
            scope, f"{layer.output}.{name}", np.array(value, helper.tensor_dtype_to_np_dtype(element_type))
        )

    def _constant(self, scope: Body, wanted: str, array: NDArray) -> str:
        """A new initializer of the main graph or, in a function, a new Constant node."""
        name = self._fresh(wanted)
        if scope.is_function:
            node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            self._constants.setdefault(id(scope), []).append(node)
        elif array.dtype == np.int64 and array.size < _FEW:  # places of a Slice, which shape inference must see
            self._main.proto.initializer.append(numpy_helper.from_array(array, name))  # type: ignore[union-attr]
        else:
            assert isinstance(self._main.proto, GraphProto)
            self._main.proto.initializer.append(self._writer.add(name, array))
        return name

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def _rebuild(self, body: Body) -> None:
        nodes = list(self._constants.get(id(body), ()))
        for place, node in enumerate(body.nodes):
            if (id(body), place) not in self._dropped:
                nodes += self._replaced.get((id(body), place), [node])
        if len(nodes) != len(body.nodes) or any(key[0] == id(body) for key in self._replaced):
            del body.proto.node[:]
            body.proto.node.extend(nodes)

    def _import_domain(self) -> None:
        proto = self._document.proto
        proto.ir_version = max(proto.ir_version, OLDEST_IR_WITH_FUNCTIONS)
        roots = {id(body.root): body.root.proto for body, _ in self._done if body.root.is_function}
        for target in (proto, *roots.values()):
            if all(entry.domain != DOMAIN for entry in target.opset_import):  # type: ignore[union-attr]
                target.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))  # type: ignore[union-attr]
        # Callees stand before their callers: not every runtime looks ahead.
        existing = [function for function in proto.functions if function.domain != DOMAIN]
        ours = {function.name: function for function in proto.functions if function.domain == DOMAIN}
        ours |= self._functions
        functions = [*(ours[name] for name in sorted(ours)), *existing]
        del proto.functions[:]
        proto.functions.extend(functions)

    def _prune(self) -> None:
        """Remove the constants, and the chains on them, that nothing reads any more."""
        order = {id(body): index for index, body in enumerate(_without_steps(self._bodies))}
        constants = [part for _, parts in self._done for part in parts]
        candidates = {(order[id(part.owner)], part.name) for part in constants if id(part.owner) in order}
        removed = True
        while removed:
            every = all_bodies(self._document.proto)
            readers, bodies = Readers(every), _without_steps(every)
            unread = [(index, name) for index, name in candidates if not readers.of(bodies[index], name)]
            candidates -= set(unread)
            outcomes = [_remove(bodies[index], name, readers) for index, name in unread]
            removed = any(outcomes)
        for body in all_bodies(self._document.proto):
            _forget_removed_values(body)


def _without_steps(bodies: Sequence[Body]) -> list[Body]:
    """The bodies but those that expansions add: of the others the order stays."""
    return [body for body in bodies if body.is_function or body.proto.name != STEP_GRAPH]


def _take_over(node: NodeProto, original: NodeProto) -> None:
    """Name, text and metadata of the node that a packed op stands for."""
    node.name, node.doc_string = original.name, original.doc_string
    node.metadata_props.extend(original.metadata_props)


def stride_slice(strides: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    """Inputs of a Slice that takes every so many places of the axes from the third on."""
    count = len(strides)
    return {
        "starts": np.zeros(count, np.int64),
        "ends": np.full(count, np.iinfo(np.int64).max),
        "axes": np.arange(2, 2 + count),
        "steps": np.array(strides, np.int64),
    }


def _is_row(tensor: TensorProto | SparseTensorProto, bias_N: NDArray[np.float32]) -> bool:
    """Whether a stored tensor can be the bias as it is."""
    dense = isinstance(tensor, TensorProto) and tensor.data_type == TensorProto.FLOAT
    return dense and list(tensor.dims) == list(bias_N.shape)


def _remove(body: Body, name: str, readers: Readers) -> bool:
    """Remove the initializer or the node that makes a value; a node only where none of its outputs is read."""
    if name in body.initializers and isinstance(body.proto, GraphProto):
        del body.proto.initializer[[tensor.name for tensor in body.proto.initializer].index(name)]
        return True
    if name in body.sparse_initializers and isinstance(body.proto, GraphProto):
        del body.proto.sparse_initializer[[item.values.name for item in body.proto.sparse_initializer].index(name)]
        return True
    if any(readers.of(body, output) for output in body.nodes[body.producers[name]].output if output):
        return False
    place = next((i for i, node in enumerate(body.proto.node) if name in node.output), None)
    if place is not None:
        del body.proto.node[place]
    return place is not None


def _forget_removed_values(body: Body) -> None:
    kept = [value for value in body.proto.value_info if body.defines(value.name)]
    if len(kept) != len(body.proto.value_info):
        del body.proto.value_info[:]
        body.proto.value_info.extend(kept)
    if isinstance(body.proto, GraphProto):
        annotations = [item for item in body.proto.quantization_annotation if body.defines(item.tensor_name)]
        if len(annotations) != len(body.proto.quantization_annotation):
            del body.proto.quantization_annotation[:]
            body.proto.quantization_annotation.extend(annotations)


def _names(body: Body) -> set[str]:
    names = {*body.inputs, *body.outputs, *body.initializers, *body.producers, *body.sparse_initializers}
    return names | {node.name for node in body.nodes}
