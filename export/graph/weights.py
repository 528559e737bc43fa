"""The one file of weights under all graphs of an artifact: a tensor is written once, when it is first asked for."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..layouts import Aim, Choice
from ..layouts.choose import HERE, Objective

INLINE_BYTES = 1024
"""Tensors smaller than this are kept in the graphs themselves."""
_PAGE_BYTES = 4096


class WeightFile:
    """Writes tensors to an external data file; graphs beside that file refer to them by name.

    `choices` says which layout each projection got. A context manager: the file is complete when the block ends.

    Args:
        path: the file to write.
        values: how the weights of packed projections are stored, a name of VALUE_TYPES.
        aim, objective: what layouts are chosen for.
    """

    def __init__(self, path: Path, values: str = "float32", aim: Aim = HERE, objective: Objective = "latency") -> None:
        self.values = values
        self.aim = aim
        self.objective: Objective = objective
        self.choices: dict[str, Choice] = {}
        self._location = path.name
        self._stream = path.open("wb")
        self._tensors: dict[str, onnx.TensorProto] = {}

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(self, name: str, make: Callable[[], NDArray]) -> None:
        """Store the tensor that `make` returns, where there is none of this name yet."""
        if name not in self._tensors:
            # Numpy's ascontiguousarray would make a vector of a number.
            array = np.require(make(), requirements="C")
            outside = array.nbytes >= INLINE_BYTES
            self._tensors[name] = self._write(name, array) if outside else numpy_helper.from_array(array, name)

    def tensor(self, name: str) -> onnx.TensorProto:
        """A stored tensor as a graph's initializer; its data are in the file unless they are small."""
        return self._tensors[name]

    def _write(self, name: str, array: NDArray) -> onnx.TensorProto:
        # At whole pages, a runtime that maps the file can give back the pages of one tensor without touching another.
        self._stream.write(bytes(-self._stream.tell() % _PAGE_BYTES))
        offset = self._stream.tell()
        # From where it lies: a tensor of ONNX would take two more copies of what may be gigabytes.
        self._stream.write(array.reshape(-1).view(np.uint8).data)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": self._location, "offset": offset, "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph beside the weight file that it refers to, after the ONNX checker has seen it."""
    onnx.save_model(model, path)
    onnx.checker.check_model(path)
