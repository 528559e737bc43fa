"""Writing a model and its external data, one tensor at a time: no more than one block of a copied tensor is in memory.

Offsets are multiples of the page size for large tensors, as ONNX recommends for mapping files, and of a cache line
for the others.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from ...artifacts import InputError
from .bodies import all_bodies
from .files import MAX_PROTO_BYTES, DataDirectory
from .tensors import byte_count, data_blocks, tensors_of_nodes

DATA_SUFFIX = ".data"
_INLINE_BYTES = 1024
_LARGE_BYTES = 1 << 16
_PAGE, _LINE = 4096, 64


class ModelWriter:
    """Writes `<path>.data` as tensors come, and the model at the end; a context manager.

    Args:
        path: where the model goes.
        files: where external data of the tensors to copy is read from.
    """

    def __init__(self, path: Path, files: DataDirectory) -> None:
        self._path, self._files = path, files
        self._location = path.name + DATA_SUFFIX
        self._stream = path.with_name(self._location).open("wb")
        self._written: set[str] = set()

    def __enter__(self) -> "ModelWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, name: str, array: NDArray) -> TensorProto:
        """Write an array as external data; the tensor that refers to it must become an initializer of this name."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        self._refer(tensor, (np.ascontiguousarray(array).tobytes(),), array.nbytes)
        self._written.add(name)
        return tensor

    def save(self, proto: ModelProto) -> None:
        """Move external data and large initializers to the data file, and write the model; `proto` is changed.

        Raises:
            InputError: what remains is more than protobuf can hold.
        """
        for body in all_bodies(proto):
            kept = (tensor for tensor in body.initializers.values() if tensor.name not in self._written)
            self._move(kept, _INLINE_BYTES if body.parent is None else None)
            self._move(tensors_of_nodes(body.nodes), None)
            for sparse in getattr(body.proto, "sparse_initializer", ()):
                self._move((sparse.values, sparse.indices), None)
        self._stream.flush()
        size = proto.ByteSize()
        if size > MAX_PROTO_BYTES:
            raise InputError(f"{self._path.name}: {size / 1e9:.2f} GB of constants in nodes exceed what protobuf holds")
        self._path.write_bytes(proto.SerializeToString())

    def _move(self, tensors: Iterable[TensorProto], inline_limit: int | None) -> None:
        """External tensors go to the data file, and inline ones above the limit."""
        for tensor in tensors:
            external = tensor.data_location == TensorProto.EXTERNAL
            large = inline_limit is not None and tensor.data_type != TensorProto.STRING
            if external or (large and byte_count(tensor) >= (inline_limit or 0)):
                self._refer(tensor, data_blocks(tensor, self._files), byte_count(tensor))

    def _refer(self, tensor: TensorProto, blocks: Iterable[bytes], length: int) -> None:
        """Write a tensor's data to the file, and refer to them there.

        A tensor without elements stays in the model: ONNX Runtime cannot load external data of no bytes.
        """
        if length == 0:
            _clear_data(tensor)
            tensor.raw_data = b""
            return
        alignment = _PAGE if length >= _LARGE_BYTES else _LINE
        self._stream.write(b"\0" * (-self._stream.tell() % alignment))
        offset = self._stream.tell()
        for block in blocks:
            self._stream.write(block)
        _clear_data(tensor)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)


def _clear_data(tensor: TensorProto) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
