"""A small builder of ONNX graphs: nodes and initializers by name, and linear layers in the layout chosen for each."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, LAYOUTS, OPSET, Choice, choose_layout

MICROSOFT = "com.microsoft"
EXTERNAL_DATA_SUFFIX = ".data"


class GraphBuilder:
    """Collects nodes, initializers, inputs and outputs; `save` writes the model with external data."""

    def __init__(self) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.choices: dict[str, Choice] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def node(
        self, op_type: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output's name."""
        names = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(op_type, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def initializer(self, name: str, value: NDArray) -> str:
        """Add a constant once and return its name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def input(self, name: str, element_type: int, shape: list[int | str]) -> str:
        """Declare a graph input; strings are symbolic dimensions."""
        self.inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, name: str, element_type: int, shape: list[int | str]) -> str:
        """Declare a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def linear(
        self, x: str, name: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_], bias_N: NDArray | None, output: str
    ) -> str:
        """Y = X W^T (+ bias) for layer `name`, packed in the layout with the fewest bytes, or dense."""
        out_features, in_features = weight_NK.shape
        choice = choose_layout(out_features, in_features, int(np.count_nonzero(mask_NK)))
        self.choices[name] = choice
        bias = None if bias_N is None else self.initializer(f"{name}.bias", bias_N)
        if choice.layout is None:
            product = output if bias is None else f"{output}.product"
            self.node("MatMul", [x, self.initializer(f"{name}.weight", weight_NK.T)], product)
            return product if bias is None else self.node("Add", [product, bias], output)
        tensors = choice.layout.encode(weight_NK, mask_NK)
        names = [self.initializer(f"{name}.{part}", tensors[part]) for part in choice.layout.tensor_names]
        inputs = [x, *names, bias or ""]
        return self.node(choice.layout.op_type, inputs, output, DOMAIN, in_features=in_features)

    def model(self, name: str) -> onnx.ModelProto:
        """The model, with the function of every layout that it uses."""
        used = {choice.layout.name for choice in self.choices.values() if choice.layout is not None}
        graph = helper.make_graph(self._nodes, name, self.inputs, self.outputs, list(self._initializers.values()))
        opsets = [("", OPSET), (MICROSOFT, 1), (DOMAIN, DOMAIN_VERSION)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
            ir_version=IR_VERSION,
            functions=[LAYOUTS[layout].function() for layout in sorted(used)],
            producer_name="hebbline",
        )


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with all large tensors in one external file beside it, after the ONNX checker has seen it."""
    location = path.name + EXTERNAL_DATA_SUFFIX
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    onnx.checker.check_model(path)
