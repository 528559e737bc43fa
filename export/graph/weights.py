"""The one file of weights under all graphs of an artifact: a tensor is written once, when it is first asked for."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

from ..layouts import Choice

INLINE_BYTES = 1024
"""Tensors smaller than this are kept in the graphs themselves."""
_PAGE_BYTES = 4096


class WeightFile:
    """Writes tensors to an external data file; graphs beside that file refer to them by name.

    `choices` says which layout each projection got. A context manager: the file is complete when the block ends.

    Args:
        path: the file to write.
        values: how the weights of packed projections are stored, a name of VALUE_TYPES.
    """

    def __init__(self, path: Path, values: str = "float32") -> None:
        self.values = values
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
            tensor = numpy_helper.from_array(np.ascontiguousarray(make()), name)
            if len(tensor.raw_data) >= INLINE_BYTES:
                self._move_out(tensor)
            self._tensors[name] = tensor

    def tensor(self, name: str) -> onnx.TensorProto:
        """A stored tensor as a graph's initializer; its data are in the file unless they are small."""
        return self._tensors[name]

    def _move_out(self, tensor: onnx.TensorProto) -> None:
        # At whole pages, a runtime that maps the file can give back the pages of one tensor without touching another.
        self._stream.write(bytes(-self._stream.tell() % _PAGE_BYTES))
        offset = self._stream.tell()
        self._stream.write(tensor.raw_data)
        set_external_data(tensor, self._location, offset, len(tensor.raw_data))
        tensor.ClearField("raw_data")


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph beside the weight file that it refers to, after the ONNX checker has seen it."""
    onnx.save_model(model, path)
    onnx.checker.check_model(path)
