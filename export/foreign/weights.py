"""Constant weights: from the input of a product back to the tensor that the file stores, and its values.

Followed: Identity, Transpose, Cast and DequantizeLinear, in chains. Each keeps the number of elements, so that a small
file cannot ask for a large array.
"""

from collections.abc import Callable
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


Constant = Stored | Derived


@dataclass(frozen=True)
class NotConstant:
    """Why a value is no weight that can be packed; `is_weight` tells a refusal worth a line in the report."""

    reason: str
    is_weight: bool


def trace(body: Body, name: str, depth: int = 0) -> Constant | NotConstant:
    """The constant that a value visible in `body` is, or why it is none."""
    owner = body.find(name)
    if owner is None or name in owner.inputs:
        overridable = owner is not None and name in owner.initializers
        return NotConstant("the weight is also an input of the graph, so that a caller may replace it", overridable)
    if name in owner.initializers:
        return Stored(owner, name, owner.initializers[name])
    if name in owner.sparse_initializers:
        return Stored(owner, name, owner.sparse_initializers[name])
    place = owner.producers[name]
    node = owner.nodes[place]
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return _constant_node(owner, name, node)
    if function_key(node) not in _STEPS or depth >= MAX_CHAIN or node.output[0] != name or has_references(node):
        return NotConstant(f"{quoted(node_title(node))} ({node.op_type}) computes it", False)
    if not node.input or not node.input[0]:
        return NotConstant(f"{quoted(node_title(node))} ({node.op_type}) has no input", False)
    inputs: list[Constant | None] = []
    for index, source in enumerate(node.input):
        # Scales and zero points must be stored as they are: a chain on each input could be walked in endless ways.
        traced = trace(owner, source, depth + 1 if index == 0 else MAX_CHAIN) if source else None
        if isinstance(traced, NotConstant):
            return traced
        inputs.append(traced)
    return Derived(owner, name, place, tuple(inputs))


def has_references(node: NodeProto) -> bool:
    """Whether an attribute is one of the enclosing function's, so that each caller may give another value."""
    return any(item.ref_attr_name for item in node.attribute)


def _constant_node(owner: Body, name: str, node: NodeProto) -> Constant | NotConstant:
    for attribute in () if has_references(node) else node.attribute:
        if attribute.name == "value":
            return Stored(owner, name, attribute.t)
        if attribute.name == "sparse_value":
            return Stored(owner, name, attribute.sparse_tensor)
    return NotConstant("the weight is a Constant without a tensor", False)


def source_of(constant: Constant) -> Stored:
    """The stored tensor at the start of the chain."""
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
    inner = [part for part in constant.inputs if part is not None] if isinstance(constant, Derived) else []
    return [constant, *(part for source in inner for part in parts_of(source))]


def stored_bytes(constant: Constant) -> int:
    """Bytes that the file holds for a constant: its source and, for quantised ones, scales and zero points."""
    stored = {(id(part.owner), part.name): part for part in parts_of(constant) if isinstance(part, Stored)}
    return sum(part.bytes for part in stored.values())


def chain_words(constant: Constant) -> str:
    """The steps from the stored tensor on, for the report."""
    steps = []
    while isinstance(constant, Derived):
        steps.append(constant.node.op_type)
        first = constant.inputs[0]
        assert first is not None, "a chain node has its data input"
        constant = first
    return ", ".join(reversed(steps))


def load(constant: Constant, document: Document) -> NDArray:
    """The constant's values in its own element type.

    Raises:
        ValueError: a chain node's shapes or attributes do not fit together; the message names the node.
    """
    if isinstance(constant, Stored):
        return constant.load(document)
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
