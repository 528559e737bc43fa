"""A small builder of ONNX graphs: nodes and initializers by name, and linear layers in the layout chosen for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ...architectures import Activation
from ..layouts import (
    DOMAIN,
    DOMAIN_VERSION,
    IR_VERSION,
    LAYOUTS,
    OPSET,
    Choice,
    FusedKind,
    FusedOp,
    Layout,
    choose_layout,
)
from .source import SourceModel
from .weights import WeightFile

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class LinearLayer:
    """A projection: its name, its sizes N and K, and its bias [N] or None.

    `read_weight` and `read_mask` give its weight [N, K] and its mask [N, K]. They are asked when a graph needs them: by
    the first of an artifact's graphs, as the others find what it has packed.
    """

    name: str
    shape: tuple[int, int]
    read_weight: Callable[[], NDArray]
    read_mask: Callable[[], NDArray[np.bool_]]
    bias_N: NDArray | None = None

    @classmethod
    def of(cls, source: SourceModel, name: str) -> "LinearLayer":
        """A projection of a model."""
        return cls(
            name, source.shape(name), partial(source.weight, name), partial(source.mask, name), source.bias(name)
        )


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
        self._fused: dict[str, FusedOp] = {}

    def node(
        self, op_type: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output's name."""
        names = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(op_type, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def initializer(self, name: str, value: NDArray | Callable[[], NDArray]) -> str:
        """Add a constant, or what makes it, once and return its name."""
        self._weights.add(name, value if callable(value) else lambda: value)
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
        """Record the layout of a projection that `linear` is not asked for, where there is none yet."""
        self._weights.choices.setdefault(name, choice)

    def layout(self, layer: LinearLayer) -> Layout | None:
        """The layout of a projection, chosen when it is first asked for; None: dense."""
        choices = self._weights.choices
        if layer.name not in choices:
            choices[layer.name] = self._choice(layer)
        return choices[layer.name].layout

    def _choice(self, layer: LinearLayer) -> Choice:
        out_features, in_features = layer.shape
        mask_NK, objective = layer.read_mask(), self._weights.objective
        links = int(np.count_nonzero(mask_NK))
        return choose_layout(
            out_features,
            in_features,
            links,
            # A layer without zeros, such as lm_head, is not what the values were asked for.
            values=self._weights.values if links < mask_NK.size else "float32",
            objective=objective,
            aim=self._weights.aim,
            weight_Z=layer.read_weight()[mask_NK] if objective == "size" else None,
        )

    def linear(self, x: str, layer: LinearLayer, output: str) -> str:
        """Y = X W^T (+ bias), packed in the layer's layout, or dense."""
        layout, bias = self.layout(layer), self._bias(layer)
        if layout is None:
            product = f"{output}.product" if bias else output
            self.node("MatMul", [x, self.initializer(f"{layer.name}.weight", lambda: layer.read_weight().T)], product)
            return self.node("Add", [product, bias], output) if bias else product
        inputs = [x, *self._packed(layer, layout), bias]
        return self.node(layout.op_type, inputs, output, DOMAIN, in_features=layer.shape[1])

    def fused(
        self, kind: FusedKind, x: str, layers: Sequence[LinearLayer], output: str, activation: Activation = "silu"
    ) -> str | None:
        """The layers as one op (see `layouts.fused`); None, and no node, where they are not of one packed layout.

        `activation` is that of a gated op, the same in all calls.
        """
        layouts = [self.layout(layer) for layer in layers]
        if layouts[0] is None or any(layout is not layouts[0] for layout in layouts):
            return None
        fused = FusedOp(kind, layouts[0], activation)
        self._fused[fused.op_type] = fused
        tensors = [name for layer in layers for name in self._packed(layer, fused.layout)]
        inputs = [x, *tensors, *(self._bias(layer) for layer in layers)]
        in_features = layers[0].shape[1]
        return self.node(fused.op_type, inputs, output, DOMAIN, in_features=in_features, **fused.attributes)

    def _bias(self, layer: LinearLayer) -> str:
        """The name of a layer's bias; "", which leaves it out, where it has none."""
        return "" if layer.bias_N is None else self.initializer(f"{layer.name}.bias", layer.bias_N)

    def _packed(self, layer: LinearLayer, layout: Layout) -> list[str]:
        """The names of a layer's tensors in its layout."""
        names = [f"{layer.name}.{part}" for part in layout.tensor_names]
        if names[0] not in self._weights:
            tensors = layout.encode(layer.read_weight(), layer.read_mask())
            for part in layout.tensor_names:
                self.initializer(f"{layer.name}.{part}", tensors[part])
        self._initializers.update(dict.fromkeys(names))
        self._layouts.add(layout.name)
        return names

    def model(self, name: str, *, portable: bool) -> onnx.ModelProto:
        """The model. A portable one has the function of every layout that it uses, for runtimes without the ops."""
        initializers = [self._weights.tensor(tensor) for tensor in self._initializers]
        # By operator: float32 and bfloat16 values share one.
        functions = {LAYOUTS[layout].op_type: LAYOUTS[layout].function() for layout in sorted(self._layouts)}
        # These call the above, which must come first for the reference evaluator.
        functions |= {op_type: fused.function() for op_type, fused in sorted(self._fused.items())}
        graph = helper.make_graph(self._nodes, name, self.inputs, self.outputs, initializers)
        opsets = [("", OPSET), (MICROSOFT, 1), (DOMAIN, DOMAIN_VERSION)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
            ir_version=IR_VERSION,
            functions=list(functions.values()) if portable else [],
            producer_name="hebbline",
        )
