"""A small builder of ONNX graphs: nodes and initializers by name, and linear layers in the layout chosen for each."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, LAYOUTS, OPSET, Choice, choose_layout
from .weights import WeightFile

MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Collects the nodes, inputs and outputs of one graph; its initializers lie in a weight file, which other graphs
    may share.

    Args:
        weights: where initializers are stored, and where those of an earlier graph are found again.
    """

    def __init__(self, weights: WeightFile) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, None] = {}
        self._layouts: set[str] = set()

    def node(
        self, op_type: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output's name."""
        names = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(op_type, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def initializer(self, name: str, value: NDArray) -> str:
        """Add a constant once and return its name."""
        self._weights.add(name, lambda: value)
        self._initializers[name] = None
        return name

    def input(self, name: str, element_type: int, shape: list[int | str]) -> str:
        """Declare a graph input; strings are symbolic dimensions."""
        self.inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, name: str, element_type: int, shape: list[int | str]) -> str:
        """Declare a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def choose(self, name: str, choice: Choice) -> None:
        """Record the layout of a projection that `linear` is not asked for."""
        self._weights.choices[name] = choice

    def linear(
        self, x: str, name: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_], bias_N: NDArray | None, output: str
    ) -> str:
        """Y = X W^T (+ bias) for layer `name`, packed in the layout with the fewest bytes, or dense."""
        out_features, in_features = weight_NK.shape
        choices = self._weights.choices
        if name not in choices:
            links = int(np.count_nonzero(mask_NK))
            # A layer without zeros, such as lm_head, is not what the values were asked for.
            values = self._weights.values if links < mask_NK.size else "float32"
            choices[name] = choose_layout(out_features, in_features, links, values=values)
        layout = choices[name].layout
        bias = None if bias_N is None else self.initializer(f"{name}.bias", bias_N)
        if layout is None:
            product = output if bias is None else f"{output}.product"
            self.node("MatMul", [x, self.initializer(f"{name}.weight", weight_NK.T)], product)
            return product if bias is None else self.node("Add", [product, bias], output)
        names = [f"{name}.{part}" for part in layout.tensor_names]
        if names[0] not in self._weights:
            tensors = layout.encode(weight_NK, mask_NK)
            for part in layout.tensor_names:
                self.initializer(f"{name}.{part}", tensors[part])
        self._initializers.update(dict.fromkeys(names))
        self._layouts.add(layout.name)
        return self.node(layout.op_type, [x, *names, bias or ""], output, DOMAIN, in_features=in_features)

    def model(self, name: str, *, portable: bool) -> onnx.ModelProto:
        """The model. A portable one carries the function of every layout that it uses, for runtimes without the ops."""
        initializers = [self._weights.tensor(tensor) for tensor in self._initializers]
        # By operator: float32 and bfloat16 values share one.
        functions = {LAYOUTS[layout].op_type: LAYOUTS[layout].function() for layout in sorted(self._layouts)}
        graph = helper.make_graph(self._nodes, name, self.inputs, self.outputs, initializers)
        opsets = [("", OPSET), (MICROSOFT, 1), (DOMAIN, DOMAIN_VERSION)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
            ir_version=IR_VERSION,
            functions=list(functions.values()) if portable else [],
            producer_name="hebbline",
        )
