"""Putting packed ops where products were, and removing what only those products read. Nothing else changes.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ..layouts import DOMAIN, DOMAIN_VERSION, Layout
from .bodies import Body, Readers, all_bodies
from .compact_layout import CompactLayout
from .document import Document
from .linears import Linear, QuantisedInput, constants_of
from .opsets import OLDEST_IR_WITH_FUNCTIONS, function_for_opset, shielded, tensor_type
from .restoring import Restorable, restoring_nodes, weight_function
from .weights import Stored
from .writing import ModelWriter

_FEW = 64


@dataclass(frozen=True)
class PackedWeight:
    """One weight in its packed form: the op, its function, and what makes its tensors, in the op's order.

    `key` tells weights apart; names of the tensors are built on `name`. `element_type` is that of the product's input
    and output in the file: where it is not float32, they are cast around the op. `restorable`
    is the dense tensor that can be decoded from it, should something else read that.
    """

    key: str
    name: str
    op_type: str
    in_features: int
    function: FunctionProto
    encode: Callable[[], dict[str, NDArray]]
    element_type: int = TensorProto.FLOAT
    restorable: Restorable | None = None

    @property
    def no_bias(self) -> tuple[str, ...]:
        """The last input of the op where there is no bias: "", or none at all where the op takes no bias."""
        return ("",) if "bias" in self.function.input else ()


@dataclass(frozen=True)
class Target:
    """What functions must fit in a file: its opset, and whether its activations are quantised (see `shielded`)."""

    opset: int
    quantised: bool = False


def pack_weight(
    key: str,
    name: str,
    layout: Layout,
    weight_NK: NDArray[np.float32],
    mask_NK: NDArray[np.bool_],
    target: Target,
    activation_scale: float = 0.0,
) -> PackedWeight:
    """A weight in a layout, with the op's function for a file; raises OpsetError where there is none.

    `activation_scale` is that of all tokens, for values that round X; 0 for each token's own.
    """

    def encode() -> dict[str, NDArray]:
        tensors = layout.encode(weight_NK, mask_NK)
        if activation_scale:
            tensors["activation_scale"] = np.array([activation_scale], np.float32)
        return tensors

    types = {}
    if not isinstance(layout, CompactLayout):  # whose function says no types
        empty = layout.encode(np.zeros((1, 1), np.float32), np.zeros((1, 1), bool))
        types = {part: tensor_type(array) for part, array in empty.items()}
    function = shielded(layout.function()) if target.quantised else layout.function()
    function = function_for_opset(function, target.opset, types)
    return PackedWeight(key, name, layout.op_type, weight_NK.shape[1], function, encode)


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
        self._layers: list[Linear] = []
        self._restorable: dict[str, tuple[PackedWeight, list[str]]] = {}

    def replace(self, layer: Linear, packed: PackedWeight) -> None:
        """Note that a packed op stands for the layer. The same `packed.key` again shares the tensors."""
        scope = self._main if not layer.body.root.is_function else layer.body.root
        key = (id(scope), packed.key)
        if key not in self._tensor_names:
            parts = packed.encode().items()
            self._tensor_names[key] = [self._constant(scope, f"{packed.name}.{part}", array) for part, array in parts]
        nodes = self._nodes(layer, packed, self._tensor_names[key], self._bias(layer, scope, packed.name))
        place = max(layer.places)
        self._replaced[id(layer.body), place] = nodes
        self._dropped.update((id(layer.body), other) for other in layer.places if other != place)
        self._functions[packed.op_type] = packed.function
        if packed.restorable is not None:
            self._restorable[packed.restorable.name] = packed, self._tensor_names[key]
        self._layers.append(layer)

    def apply(self) -> None:
        """Change the document's model."""
        if not self._layers:
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
            name = layer.node.name if index == product else ""
            nodes.append(helper.make_node(op_type, [value, *inputs], [output], name=name, **attributes))  # type: ignore[arg-type]
            value = output
            if index == product:
                nodes[-1].doc_string = layer.node.doc_string
                nodes[-1].metadata_props.extend(layer.node.metadata_props)
        return nodes

    def _slice(self, layer: Linear) -> list[str]:
        """The inputs of a Slice that takes a convolution's strides."""
        scope = self._main if not layer.body.root.is_function else layer.body.root
        parts = stride_slice(layer.strides).items()
        return [self._constant(scope, f"{layer.output}.{name}", array) for name, array in parts]

    def _dequantised(self, layer: Linear, given: QuantisedInput, output: str) -> NodeProto:
        scope = self._main if not layer.body.root.is_function else layer.body.root
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
        scope = self._main if not layer.body.root.is_function else layer.body.root
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
        roots = {id(layer.body.root): layer.body.root.proto for layer in self._layers if layer.body.root.is_function}
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
        order = {id(body): index for index, body in enumerate(self._bodies)}
        candidates = {(order[id(part.owner)], part.name) for layer in self._layers for part in constants_of(layer)}
        removed = True
        while removed:
            bodies = all_bodies(self._document.proto)
            readers = Readers(bodies)
            unread = [(index, name) for index, name in candidates if not readers.of(bodies[index], name)]
            candidates -= set(unread)
            outcomes = [_remove(bodies[index], name, readers) for index, name in unread]
            removed = any(outcomes)
        for body in all_bodies(self._document.proto):
            _forget_removed_values(body)


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
