"""Tensors in ONNX's own sparse form: values, and where they stand in a dense tensor of zeros.

Places are linear indices [Z] or coordinates [Z, rank], int64, ascending, as ONNX says. A small file can claim any
dimensions, so what it may expand to is bounded before anything is allocated.

Legend: Z stored values.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, TensorProto

from ...artifacts import InputError
from .files import DataDirectory, quoted
from .tensors import byte_count, check_tensor, element_count, load_tensor

_MOST_ELEMENTS = 1 << 26
_MOST_PER_VALUE = 4096
"""Elements of the dense tensor: so many in any case, or so many for each value that the file stores."""


def sparse_tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, SparseTensorProto]]:
    """Every sparse tensor in the attributes of nodes, with the name of what the node writes."""
    for node in nodes:
        title = next(iter(node.output), "")
        for attribute in node.attribute:
            held = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            yield from ((title, sparse) for sparse in (*held, *attribute.sparse_tensors))


def sparse_bytes(sparse: SparseTensorProto) -> int:
    """Bytes that the file holds for a checked sparse tensor."""
    return byte_count(sparse.values) + byte_count(sparse.indices)


def load_sparse(sparse: SparseTensorProto, files: DataDirectory) -> NDArray:
    """A checked sparse tensor as a dense array of its own element type."""
    values_Z, places_Z = load_tensor(sparse.values, files), _linear(sparse, load_tensor(sparse.indices, files))
    dense = np.zeros(math.prod(sparse.dims), values_Z.dtype)
    dense[places_Z] = values_Z
    return dense.reshape(tuple(sparse.dims))


def check_sparse(sparse: SparseTensorProto, title: str, model: Path, files: DataDirectory) -> None:
    """Raise InputError, naming file and tensor, where values, indices and dimensions do not fit together."""
    for tensor in (sparse.values, sparse.indices):
        check_tensor(tensor, model, files)
    fault = _form_fault(sparse) or _index_fault(sparse, load_tensor(sparse.indices, files))
    if fault:
        raise InputError(f"{model}: sparse tensor {quoted(title)}: {fault}")


def _form_fault(sparse: SparseTensorProto) -> str | None:
    dims, values, indices = list(sparse.dims), sparse.values, sparse.indices
    if not dims or any(size < 1 for size in dims):
        return f"its dimensions {dims} are none, or include one that is not positive"
    if values.data_type == TensorProto.STRING or len(values.dims) != 1:
        return f"its values have the dimensions {list(values.dims)} or are text; they must be one row of numbers"
    count, shape = element_count(values), list(indices.dims)
    if indices.data_type != TensorProto.INT64 or shape not in ([count], [count, len(dims)]):
        return f"its indices {shape} must be int64, [{count}] or [{count}, {len(dims)}], for {count} values"
    if math.prod(dims) > max(_MOST_ELEMENTS, _MOST_PER_VALUE * count):
        return f"its dimensions {dims} are too large for {count} values"
    return None


def _index_fault(sparse: SparseTensorProto, indices: NDArray[np.int64]) -> str | None:
    limits = list(sparse.dims) if indices.ndim == 2 else math.prod(sparse.dims)
    if (indices < 0).any() or (indices >= limits).any():
        return f"an index lies outside of its dimensions {list(sparse.dims)}"
    if (np.diff(_linear(sparse, indices)) <= 0).any():
        return "its indices are not ascending, or one occurs twice"
    return None


def _linear(sparse: SparseTensorProto, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in the flattened dense tensor."""
    if indices.ndim == 1:
        return indices
    return np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims)).astype(np.int64)
