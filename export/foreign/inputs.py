"""Random inputs for a graph that nobody described: shapes from the graph, small sizes for its symbolic dimensions.

Several choices of the symbolic sizes are made. Distinct ones come first, since they tell dimensions apart; a graph may
tie dimensions together in ways that its inputs do not say, and then equal ones are accepted.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, helper

from .files import quoted

_DISTINCT = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
_EQUAL = (2, 1, 4, 8, 16, 32, 64, 224)
_MOST_ELEMENTS = 1 << 26
_MOST_ROWS = 1 << 31
_SAME_NUMBERS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_INTEGERS = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)


class NoInputsError(Exception):
    """Inputs cannot be made up for this graph; the message says for which input and why."""


def input_attempts(model: ModelProto, feeds: int, seed: int = 0) -> list[list[dict[str, NDArray]]]:
    """Sets of inputs to try: for each choice of symbolic sizes, `feeds` random ones of the same shapes.

    Raises:
        NoInputsError: an input is no dense tensor of numbers, has no shape, or is too large.
    """
    inputs, rows = graph_inputs(model), _table_rows(model)
    rng = np.random.default_rng(seed)
    attempts: list[list[dict[str, NDArray]]] = []
    shapes_seen = set()
    for sizes in (_distinct_sizes(), *(_equal_sizes(size) for size in _EQUAL)):
        shapes = {value.name: _shape(value, sizes) for value in inputs}
        if tuple(shapes.items()) in shapes_seen:
            continue
        shapes_seen.add(tuple(shapes.items()))
        if sum(math.prod(shape) for shape in shapes.values()) <= _MOST_ELEMENTS:
            attempts.append(
                [{value.name: _values(value, shapes[value.name], rng, rows) for value in inputs} for _ in range(feeds)]
            )
    if not attempts:
        raise NoInputsError(f"its inputs have more than {_MOST_ELEMENTS} elements")
    return attempts


def feeds_of_sizes(
    model: ModelProto, leading: int, other: int, width: int | None = None, seed: int = 0
) -> dict[str, NDArray]:
    """Random inputs whose free dimensions are `leading` where they are an input's first, and else `other`.

    `width` is the size of the last dimension of an input of four, where that is another.

    Raises:
        NoInputsError: as `input_attempts`.
    """
    rng, rows = np.random.default_rng(seed), _table_rows(model)
    first = {dimension.dim_param for value in graph_inputs(model) if (dimension := _first_dimension(value)) is not None}
    sizes = {name: leading for name in first if name}
    sizes |= {f"{value.name}.0": leading for value in graph_inputs(model)}  # what a dimension without a name is called
    if width is not None:
        wide = [value for value in graph_inputs(model) if len(value.type.tensor_type.shape.dim) == 4]
        sizes |= {value.type.tensor_type.shape.dim[3].dim_param or f"{value.name}.3": width for value in wide}
    feeds = {}
    for value in graph_inputs(model):
        shape = _shape(value, lambda name: sizes.get(name, other))
        if math.prod(shape) > _MOST_ELEMENTS:
            raise NoInputsError(f"input {quoted(value.name)} has more than {_MOST_ELEMENTS} elements")
        feeds[value.name] = _values(value, shape, rng, rows)
    return feeds


def _table_rows(model: ModelProto) -> dict[str, int]:
    """For each input by which rows of a constant table are gathered, as tokens of an embedding, how many it has."""
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    origins = {value.name: value.name for value in graph_inputs(model)}
    rows: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _SAME_NUMBERS and node.input and node.input[0] in origins and node.output:
            origins[node.output[0]] = origins[node.input[0]]
        first_axis = all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
        if node.op_type == "Gather" and len(node.input) == 2 and first_axis and node.input[0] in sizes:
            origin = origins.get(node.input[1], "")
            rows[origin] = min(rows.get(origin, _MOST_ROWS), sizes[node.input[0]])
    return rows


def _first_dimension(value: ValueInfoProto) -> TensorShapeProto.Dimension | None:
    dimensions = value.type.tensor_type.shape.dim
    return dimensions[0] if dimensions else None


def graph_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Those that must be given: inputs with an initializer have a default."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initialized]


Sizes = Callable[[str], int]


def _distinct_sizes() -> Sizes:
    known: dict[str, int] = {}
    return lambda name: known.setdefault(name, _DISTINCT[len(known) % len(_DISTINCT)])


def _equal_sizes(size: int) -> Sizes:
    return lambda name: size


def _shape(value: ValueInfoProto, sizes: Sizes) -> tuple[int, ...]:
    kind = value.type
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        raise NoInputsError(f"input {quoted(value.name)} is no tensor, or has no shape")
    shape = []
    for place, dimension in enumerate(kind.tensor_type.shape.dim):
        fixed = dimension.HasField("dim_value") and dimension.dim_value >= 0  # some exporters write -1 for a free one
        name = dimension.dim_param or f"{value.name}.{place}"
        shape.append(dimension.dim_value if fixed else sizes(name))
    return tuple(shape)


def _values(value: ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator, rows: dict[str, int]) -> NDArray:
    kind = value.type.tensor_type.elem_type
    if kind in _FLOATS:
        return rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    if kind == TensorProto.BOOL:
        return np.ones(shape, bool)
    if kind in _INTEGERS:
        # Zero and one are in range for a position and a length; a mask of zeros would hide everything.
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        low, rest = 1 if "mask" in value.name.lower() else 0, rows.get(value.name, 2)
        return rng.integers(low, max(low + 1, min(rest, np.iinfo(dtype).max)), shape).astype(dtype)
    raise NoInputsError(f"input {quoted(value.name)} has the element type {TensorProto.DataType.Name(kind)}")
