"""A builder of strongly typed ONNX graphs: every value has one of float16, bfloat16 and float32, and no runtime may
choose another.

Legend: N out_features, K in_features of a linear layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 24
IR_VERSION = 11


@dataclass(frozen=True)
class Precision:
    """A floating-point type under its names in ONNX and NumPy, and the least compute capability that multiplies it."""

    name: str
    element_type: int
    numpy: DTypeLike
    least_capability: float


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float16", TensorProto.FLOAT16, np.float16, 5.3),
        Precision("bfloat16", TensorProto.BFLOAT16, ml_dtypes.bfloat16, 8.0),
        Precision("float32", TensorProto.FLOAT, np.float32, 5.0),
    )
}


class TypedGraph:
    """Collects nodes, initializers, inputs and outputs of a graph whose numbers are of one precision."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.functions: dict[str, onnx.FunctionProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def node(
        self,
        op_type: str,
        inputs: list[str],
        outputs: list[str] | str,
        domain: str = "",
        node_name: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node, named after its first output where no name is given, and return that output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        name = node_name or names[0]
        self._nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attributes))
        return names[0]

    def weight(self, name: str, value: NDArray) -> str:
        """Add a constant in the graph's precision, rounded to nearest even, and return its name."""
        return self.constant(name, value.astype(self.precision.numpy))

    def constant(self, name: str, value: NDArray) -> str:
        """Add a constant as it is, once, and return its name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def input(self, name: str, shape: list[int | str], element_type: int | None = None) -> str:
        """Declare an input, in the graph's precision where no type is named; strings are symbolic dimensions."""
        kind = element_type or self.precision.element_type
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: list[int | str], element_type: int | None = None) -> str:
        """Declare an output; as `input`."""
        kind = element_type or self.precision.element_type
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def linear(self, x: str, name: str, weight_NK: NDArray, bias_N: NDArray | None, output: str) -> str:
        """Y = X W^T (+ bias), dense: absent links are explicit zeros. The node that multiplies is called `name`."""
        product = output if bias_N is None else f"{output}.product"
        self.node("MatMul", [x, self.weight(f"{name}.weight", weight_NK.T)], product, node_name=name)
        if bias_N is None:
            return product
        return self.node("Add", [product, self.weight(f"{name}.bias", bias_N)], output)

    def model(self, name: str) -> onnx.ModelProto:
        """The model, with its functions."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initializers.values()))
        domains = {function.domain for function in self.functions.values()}
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)],
            ir_version=IR_VERSION,
            functions=list(self.functions.values()),
            producer_name="hebbline",
        )


def save_typed_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with its weights in `<name>.data` beside it.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not well formed, or types or
            shapes in it do not agree.
    """
    location = path.name + ".data"
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    onnx.checker.check_model(path, full_check=True)
