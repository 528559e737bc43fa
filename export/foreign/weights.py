"""Constant weights: from the input of a product back to the tensor that the file stores, and its values.

Followed: Identity, Transpose, Cast and DequantizeLinear, in chains. Each keeps the number of elements, so that a small
file cannot ask for a large array.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, TensorProto, helper

from .bodies import Body, function_key, node_title
from .document import Document
from .files import quoted
from .sparse_tensors import load_sparse, sparse_bytes
from .tensors import byte_count, float32_values, load_tensor

MAX_CHAIN = 32


@dataclass(frozen=True)
class Stored:
    """A tensor in the file, dense or in ONNX's own sparse form: `owner` defines it under `name`."""

    owner: Body
    name: str
    tensor: TensorProto | SparseTensorProto

    @property
    def bytes(self) -> int:
        """What the file holds for it."""
        return byte_count(self.tensor) if isinstance(self.tensor, TensorProto) else sparse_bytes(self.tensor)

    def load(self, document: Document) -> NDArray:
        """Its values, dense."""
        if isinstance(self.tensor, TensorProto):
            return load_tensor(self.tensor, document.files)
        return load_sparse(self.tensor, document.files)


@dataclass(frozen=True)
class Derived:
    """The output `name` of a chain node in `owner`, at `place`, with its constant inputs (None where absent)."""

    owner: Body
    name: str
    place: int
    inputs: "tuple[Constant | None, ...]"

    @property
    def node(self) -> NodeProto:
        """The node."""
        return self.owner.nodes[self.place]


@dataclass(frozen=True, eq=False)
class Folded:
    """The value `name` of `owner` that constant nodes compute, and has been computed.

    `parts` are the nodes and the stored tensors that it needs; the latter's bytes are `bytes`, shared among the values
    that need them.
    """

    owner: Body
    name: str
    array: NDArray
    parts: "tuple[Derived | Stored, ...]"
    bytes: int


Constant = Stored | Derived | Folded


@dataclass(frozen=True)
class NotConstant:
    """Why a value is no weight that can be packed; `stored` is it, where it deserves a line in the report all the
    same."""

    reason: str
    stored: Stored | None = None


def trace(body: Body, name: str, depth: int = 0) -> Constant | NotConstant:
    """The constant that a value visible in `body` is, or why it is none."""
    owner = body.find(name)
    if owner is None or name in owner.inputs:
        tensor = None if owner is None else owner.initializers.get(name)
        stored = None if owner is None or tensor is None else Stored(owner, name, tensor)
        return NotConstant("the weight is also an input of the graph, so that a caller may replace it", stored)
    if (folded := owner.folded.get(name)) is not None:
        return folded
    if (stored := trace_stored(owner, name)) is not None:
        return stored
    place = owner.producers[name]
    node = owner.nodes[place]
    if not is_step(node, name) or depth >= MAX_CHAIN:
        return NotConstant(f"{quoted(node_title(node))} ({node.op_type}) computes it")
    inputs: list[Constant | None] = []
    for index, source in enumerate(node.input):
        # Scales and zero points must be stored as they are: a chain on each input could be walked in endless ways.
        traced = trace(owner, source, depth + 1 if index == 0 else MAX_CHAIN) if source else None
        if isinstance(traced, NotConstant):
            return traced
        inputs.append(traced)
    return Derived(owner, name, place, tuple(inputs))


def is_step(node: NodeProto, name: str) -> bool:
    """Whether the value `name` is one step of a chain that is followed."""
    known = function_key(node) in _STEPS and node.output[0] == name and not has_references(node)
    return known and bool(node.input) and bool(node.input[0])


def trace_stored(body: Body, name: str) -> Stored | None:
    """The tensor that a value visible in `body` is as it stands, None where it is none or a caller may replace it."""
    owner = body.find(name)
    if owner is None or name in owner.inputs:
        return None
    tensor = owner.initializers.get(name) or owner.sparse_initializers.get(name)
    if tensor is not None:
        return Stored(owner, name, tensor)
    place = owner.producers.get(name)
    return None if place is None else _constant_node(owner, name, owner.nodes[place])


def has_references(node: NodeProto) -> bool:
    """Whether an attribute is one of the enclosing function's, so that each caller may give another value."""
    return any(item.ref_attr_name for item in node.attribute)


def _constant_node(owner: Body, name: str, node: NodeProto) -> Stored | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in () if has_references(node) else node.attribute:
        if attribute.name == "value":
            return Stored(owner, name, attribute.t)
        if attribute.name == "sparse_value":
            return Stored(owner, name, attribute.sparse_tensor)
    return None


def source_of(constant: Constant) -> Stored | Folded:
    """The stored or computed tensor at the start of the chain."""
    while isinstance(constant, Derived):
        first = constant.inputs[0]
        assert first is not None, "a chain node has its data input"
        constant = first
    return constant


def chain_input(body: Body, name: str) -> str | None:
    """The input of a function or graph that a value is, through any chain; None where it is none."""
    for _ in range(MAX_CHAIN):
        owner = body.find(name)
        if owner is None or name in owner.inputs:
            return name if owner is not None else None
        place = owner.producers.get(name)
        if place is None or function_key(owner.nodes[place]) not in _STEPS or not owner.nodes[place].input:
            return None
        body, name = owner, owner.nodes[place].input[0]
    return None


def parts_of(constant: Constant) -> list[Constant]:
    """The constant itself and all that it is computed from."""
    if isinstance(constant, Folded):
        return [constant, *constant.parts]
    inner = [part for part in constant.inputs if part is not None] if isinstance(constant, Derived) else []
    return [constant, *(part for source in inner for part in parts_of(source))]


def stored_bytes(constant: Constant) -> int:
    """Bytes that the file holds for a constant: its source and, for quantised ones, scales and zero points."""
    source = source_of(constant)
    computed = source.parts if isinstance(source, Folded) else ()
    shared = {(id(part.owner), part.name) for part in computed}  # of which the computed tensor has its share
    held = {(id(part.owner), part.name): part for part in parts_of(constant) if isinstance(part, Stored)}
    own = sum(part.bytes for key, part in held.items() if key not in shared)
    return own + (source.bytes if isinstance(source, Folded) else 0)


def chain_words(constant: Constant) -> str:
    """The steps from the stored tensor on, for the report."""
    steps = []
    while isinstance(constant, Derived):
        steps.append(constant.node.op_type)
        first = constant.inputs[0]
        assert first is not None, "a chain node has its data input"
        constant = first
    if isinstance(constant, Folded):
        nodes = [part.node.op_type for part in constant.parts if isinstance(part, Derived)]
        steps += reversed(dict.fromkeys(nodes))
    return ", ".join(reversed(steps))


def folded_nodes(bodies: Iterable[Body]) -> set[tuple[int, int]]:
    """Body and place of every node that computes a weight."""
    computed: Iterable[Folded] = (folded for body in bodies for folded in body.folded.values())
    return {(id(part.owner), part.place) for item in computed for part in item.parts if isinstance(part, Derived)}


def load(constant: Constant, document: Document) -> NDArray:
    """The constant's values in its own element type.

    Raises:
        ValueError: a chain node's shapes or attributes do not fit together; the message names the node.
    """
    if isinstance(constant, Stored):
        return constant.load(document)
    if isinstance(constant, Folded):
        return constant.array
    inputs = [None if part is None else load(part, document) for part in constant.inputs]
    try:
        return _STEPS[function_key(constant.node)](constant.node, inputs)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{quoted(node_title(constant.node))} ({constant.node.op_type}) cannot be computed: {error}"
        ) from error


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


Inputs = list[NDArray | None]


def _data(inputs: Inputs) -> NDArray:
    if not inputs or inputs[0] is None:
        raise ValueError("it has no data")
    return inputs[0]


def _identity(node: NodeProto, inputs: Inputs) -> NDArray:
    del node
    return _data(inputs)


def _transpose(node: NodeProto, inputs: Inputs) -> NDArray:
    return np.transpose(_data(inputs), _attribute(node, "perm", None))


def _cast(node: NodeProto, inputs: Inputs) -> NDArray:
    kind = _attribute(node, "to", 0)
    if kind == TensorProto.FLOAT:
        return float32_values(_data(inputs))
    if kind not in (TensorProto.FLOAT16, TensorProto.DOUBLE):
        raise ValueError("it casts to another type than float16, float32 and float64")
    with np.errstate(over="ignore"):
        return _data(inputs).astype(helper.tensor_dtype_to_np_dtype(kind))


def _dequantize(node: NodeProto, inputs: Inputs) -> NDArray:
    """(x - zero point) * scale, both a tensor, a column of an axis, or a block along it."""
    data, scale = _data(inputs), inputs[1] if len(inputs) > 1 else None
    zero = inputs[2] if len(inputs) > 2 else None
    if scale is None or scale.dtype != np.float32:
        raise ValueError("its scale is not float32")
    spread = _spreader(node, data, scale)
    if data.dtype.name.startswith("float"):  # float8: there is no zero point but 0
        return float32_values(data) * spread(scale)
    wide = np.int32 if data.dtype.itemsize <= 2 else np.int64
    whole = data.astype(wide)
    if zero is not None:
        whole = whole - spread(zero).astype(wide)
    return (whole.astype(np.float32) * spread(scale)).astype(np.float32)


def _spreader(node: NodeProto, data: NDArray, scale: NDArray) -> Callable[[NDArray], NDArray]:
    """How scales and zero points are laid over the data, as DequantizeLinear says."""
    axis, block = int(_attribute(node, "axis", 1)), int(_attribute(node, "block_size", 0))
    if scale.size == 1 and not block:
        return lambda values: values.reshape(())
    axis = axis if data.ndim == 0 else np.arange(data.ndim)[axis]
    size = data.shape[axis]
    if block:
        expected = (*data.shape[:axis], -(-size // block), *data.shape[axis + 1 :])
        if block < 0 or scale.shape != expected:
            raise ValueError(f"scales {scale.shape} do not fit blocks of {block} of {data.shape}")
        block = min(block, max(1, size))  # a block may be larger than the axis, and claim to be endless
        return lambda values: np.repeat(values, block, axis).take(range(size), axis)
    if scale.shape != (size,):
        raise ValueError(f"scales {scale.shape} do not fit axis {axis} of {data.shape}")
    return lambda values: values.reshape([size if i == axis else 1 for i in range(data.ndim)])


_STEPS: dict[tuple[str, str, str], Callable[[NodeProto, Inputs], NDArray]] = {
    ("", "Identity", ""): _identity,
    ("", "Transpose", ""): _transpose,
    ("", "Cast", ""): _cast,
    ("", "DequantizeLinear", ""): _dequantize,
}
