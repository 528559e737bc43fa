"""Tensors of a stranger's model: their stated size against their data, and their values.

A tensor's dimensions are checked against the bytes that are really there before anything is allocated for them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ...artifacts import InputError
from .files import DataDirectory, quoted

_MAX_DIMENSIONS = 64
_BITS = {
    8: "BOOL INT8 UINT8 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
    16: "INT16 UINT16 FLOAT16 BFLOAT16",
    32: "INT32 UINT32 FLOAT",
    64: "INT64 UINT64 DOUBLE COMPLEX64",
    128: "COMPLEX128",
    4: "INT4 UINT4 FLOAT4E2M1",
    2: "INT2 UINT2",
}
ELEMENT_BITS: dict[int, int] = {
    TensorProto.DataType.Value(name): bits
    for bits, names in _BITS.items()
    for name in names.split()
    if name in TensorProto.DataType.keys()  # noqa: SIM118 - an enum wrapper, not a dict
}
"""Bits an element takes in `raw_data`, by TensorProto.DataType; strings are not here."""
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_LOCATION_KEYS = ("location", "offset", "length", "checksum")


@dataclass(frozen=True)
class Span:
    """Where external data lies: `length` bytes at `offset` of the file at `location`."""

    location: str
    offset: int
    length: int


def element_count(tensor: TensorProto) -> int:
    """Product of the dimensions; Python integers do not overflow."""
    return math.prod(tensor.dims)


def byte_count(tensor: TensorProto) -> int:
    """Bytes of a checked tensor's elements, sub-byte types packed."""
    if tensor.data_type == TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    return -(-element_count(tensor) * ELEMENT_BITS[tensor.data_type] // 8)


def check_tensor(tensor: TensorProto, model: Path, files: DataDirectory) -> None:
    """Raise InputError, naming file and tensor, where dimensions, type and data do not agree."""
    fault = _type_fault(tensor) or (
        _external_fault(tensor) if tensor.data_location == TensorProto.EXTERNAL else _inline_fault(tensor)
    )
    if fault:
        raise InputError(f"{model}: tensor {quoted(tensor.name)}: {fault}")
    if tensor.data_location == TensorProto.EXTERNAL:
        span = external_span(tensor)
        files.check_span(span.location, span.offset, span.length, tensor.name)


def external_span(tensor: TensorProto) -> Span:
    """The span of a checked external tensor; without a stated length it is the tensor's own."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Span(entries["location"], int(entries.get("offset", 0)), int(entries.get("length", byte_count(tensor))))


def data_blocks(tensor: TensorProto, files: DataDirectory) -> Iterator[bytes]:
    """The elements of a checked tensor as raw bytes, in blocks."""
    if tensor.data_location == TensorProto.EXTERNAL:
        span = external_span(tensor)
        return files.blocks(span.location, span.offset, span.length, tensor.name)
    if tensor.HasField("raw_data"):
        return iter((tensor.raw_data,))
    return iter((numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data,))


def load_tensor(tensor: TensorProto, files: DataDirectory) -> NDArray:
    """The values of a checked tensor, in the numpy type (or the ml_dtypes type) of its element type."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    inline = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
    inline.raw_data = b"".join(data_blocks(tensor, files))
    return numpy_helper.to_array(inline)


def tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    """Every tensor in the attributes of nodes, sparse ones' parts included; subgraphs are not entered."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for tensor in (*sparse, *attribute.sparse_tensors):
                yield from (tensor.values, tensor.indices)


def _type_fault(tensor: TensorProto) -> str | None:
    if any(size < 0 for size in tensor.dims):
        return f"its dimensions {list(tensor.dims)} include a negative one"
    if len(tensor.dims) > _MAX_DIMENSIONS:
        return f"it has {len(tensor.dims)} dimensions, more than {_MAX_DIMENSIONS}"
    if tensor.data_type != TensorProto.STRING and tensor.data_type not in ELEMENT_BITS:
        return f"its element type {tensor.data_type} is unknown"
    return "it is a segment of a tensor, which is not supported" if tensor.HasField("segment") else None


def _external_fault(tensor: TensorProto) -> str | None:
    keys = [entry.key for entry in tensor.external_data]
    if keys.count("location") != 1 or len(set(keys)) != len(keys) or not set(keys) <= set(_LOCATION_KEYS):
        return (
            f"its external data has the keys {keys}; one location, and at most one offset, length and checksum belong"
        )
    if tensor.data_type == TensorProto.STRING:
        return "strings cannot be external data"
    if tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _TYPED_FIELDS):
        return "it has data both in the model and outside"
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not (entry.value.isascii() and entry.value.isdigit()):
            return f"the {entry.key} of its external data is {entry.value!r}, not a count of bytes"
    length = external_span(tensor).length
    if length != byte_count(tensor):
        return f"its dimensions {list(tensor.dims)} take {byte_count(tensor)} bytes, its external data has {length}"
    return None


def _inline_fault(tensor: TensorProto) -> str | None:
    counts = {name: len(getattr(tensor, name)) for name in _TYPED_FIELDS if len(getattr(tensor, name))}
    if tensor.HasField("raw_data"):
        if counts or tensor.data_type == TensorProto.STRING:
            return "it has raw data and typed data, or raw strings"
        actual, expected = len(tensor.raw_data), byte_count(tensor)
        return None if actual == expected else f"dimensions {list(tensor.dims)} take {expected} bytes, it has {actual}"
    field, expected = _typed_field(tensor)
    if not set(counts) <= {field} or counts.get(field, 0) != expected:
        return f"its dimensions {list(tensor.dims)} take {expected} entries of {field}, it has {counts or 'no data'}"
    return None


def _typed_field(tensor: TensorProto) -> tuple[str, int]:
    """The typed field that holds elements of this type, and how many entries this tensor must have there."""
    count, kind = element_count(tensor), tensor.data_type
    field = onnx.helper.tensor_dtype_to_field(kind)
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return field, 2 * count
    bits = ELEMENT_BITS.get(kind, 8)
    return field, -(-count * bits // 8) if bits < 8 else count


def float32_values(array: NDArray) -> NDArray[np.float32]:
    """Any numeric array as float32, rounded to nearest even as ONNX's Cast does."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
