"""Sessions of ONNX Runtime with copies of one linear layer: the dense baseline, and sparse layers of every value type.

Legend: N out_features, K in_features, R copies of the layer, M tokens.

A timed call runs R layers, each in memory of its own and together larger than the caches, so that weights come from
memory as they do in a model.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..artifacts import CheckError
from ..export.layouts import (
    DOMAIN,
    DOMAIN_VERSION,
    IR_VERSION,
    OPSET,
    VALUE_TYPES,
    BitmaskLayout,
    Layout,
    choose_layout,
)
from ..kernels import register

LARGEST_ERROR = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 3e-2, "int4": 3e-2}
"""Allowed difference from a float64 product with the stored weights, relative to the largest |Y|.

For float32 it is the rounding of sums; for the others, that of the activations, which the value type rounds too.
"""
_COPIES_BYTES = 192 << 20
_PACKED_BYTES = 64 << 20
_LARGEST_MODEL_BYTES = 1 << 30
_MOST_COPIES = 512

Call = Callable[[], object]
Bind = Callable[[NDArray[np.float32]], Call]
"""Makes a call that runs all copies on an X [M, K]."""


class Layers:
    """A session with R copies of one layer, which read one X and write into one Y."""

    def __init__(
        self,
        model: Callable[[int], onnx.ModelProto],
        shape: tuple[int, ...],
        threads: int,
        options: Iterable[str] = (),
        copies: int | None = None,
    ) -> None:
        self.out_features, self.in_features = shape
        self.copies = copies_of(shape) if copies is None else copies
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session_options.log_severity_level = 3
        if "kernels" in options:
            register(session_options)
        self._session = onnxruntime.InferenceSession(
            model(self.copies).SerializeToString(), session_options, providers=["CPUExecutionProvider"]
        )

    def bind(self, x_MK: NDArray[np.float32]) -> Call:
        """A call that runs all copies on X, without copying in or out."""
        y_MN = np.empty((len(x_MK), self.out_features), np.float32)
        io = self._session.io_binding()
        io.bind_input("X", "cpu", 0, np.float32, list(x_MK.shape), x_MK.ctypes.data)
        for copy in range(self.copies):
            io.bind_output(f"Y{copy}", "cpu", 0, np.float32, list(y_MN.shape), y_MN.ctypes.data)

        def call(keep: tuple[NDArray, NDArray] = (x_MK, y_MN)) -> None:
            self._session.run_with_iobinding(io)

        return call

    def run(self, x_MK: NDArray[np.float32]) -> NDArray[np.float32]:
        """Y [M, N] of the first copy."""
        return self._session.run(["Y0"], {"X": x_MK})[0]


class DenseLayers(Layers):
    """The baseline: MatMul with a constant float32 weight, which ONNX Runtime packs for itself."""

    def __init__(self, weight_NK: NDArray[np.float32], threads: int) -> None:
        super().__init__(lambda copies: dense_model(weight_NK, copies), weight_NK.shape, threads)
        self.case = (weight_NK.shape, threads)


class SparseLayers(Layers):
    """One value type in the layout that the cost model chooses for it."""

    def __init__(self, weight_NK: NDArray[np.float32], mask_NK: NDArray[np.bool_], values: str, threads: int) -> None:
        self.values = values
        self.layout = _layout(mask_NK, values)
        tensors = self.layout.encode(weight_NK, mask_NK)
        self._decoded_NK = self.layout.decode(tensors, weight_NK.shape[1])[0].astype(np.float64)
        copies = min(_MOST_COPIES, -(-_PACKED_BYTES // sum(tensor.nbytes for tensor in tensors.values())))
        super().__init__(lambda copies: self._model(tensors, copies), weight_NK.shape, threads, ["kernels"], copies)

    def check(self, x_MK: NDArray[np.float32]) -> float:
        """The largest error relative to the largest |Y|; raises CheckError where it is over the type's bound."""
        expected_MN = x_MK.astype(np.float64) @ self._decoded_NK.T
        scale = float(np.abs(expected_MN).max()) or 1.0
        error = float(np.abs(self.run(x_MK) - expected_MN).max()) / scale
        if not error <= LARGEST_ERROR[self.values]:
            raise CheckError(
                f"{self.layout.name}, {self.out_features}x{self.in_features}, {len(x_MK)} tokens: the result differs "
                f"from float64 by {error:.2e}, over the {LARGEST_ERROR[self.values]:.0e} of {self.values}"
            )
        return error

    def _model(self, tensors: dict[str, NDArray], copies: int) -> onnx.ModelProto:
        """R nodes of the same tensors, each of which the kernel packs into memory of its own."""
        initializers = [numpy_helper.from_array(tensors[name], name) for name in self.layout.tensor_names]
        inputs = ["X", *self.layout.tensor_names, ""]
        nodes = [
            helper.make_node(self.layout.op_type, inputs, [f"Y{copy}"], domain=DOMAIN, in_features=self.in_features)
            for copy in range(copies)
        ]
        return linear_model(nodes, initializers, (self.out_features, self.in_features), [self.layout.function()])


def _layout(mask_NK: NDArray[np.bool_], values: str) -> Layout:
    """The smallest layout, even where the layer would better stay dense: to show that is what a benchmark is for."""
    out_features, in_features = mask_NK.shape
    choice = choose_layout(out_features, in_features, int(np.count_nonzero(mask_NK)), values=values, objective="size")
    return choice.layout or BitmaskLayout(VALUE_TYPES[values])


def dense_model(weight_NK: NDArray[np.float32], copies: int) -> onnx.ModelProto:
    """R MatMul nodes, each with a weight of its own."""
    weights = [numpy_helper.from_array(np.roll(weight_NK, copy, axis=0).T.copy(), f"W{copy}") for copy in range(copies)]
    nodes = [helper.make_node("MatMul", ["X", f"W{copy}"], [f"Y{copy}"], name=f"layer{copy}") for copy in range(copies)]
    return linear_model(nodes, weights, weight_NK.shape)


def linear_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    shape: tuple[int, ...],
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from X [tokens, K] to Y0, Y1, … [tokens, N]."""
    out_features, in_features = shape
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["tokens", in_features])
    ys = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["tokens", out_features]) for node in nodes]
    graph = helper.make_graph(list(nodes), "layers", [x], ys, list(initializers))
    opsets = [("", OPSET), ("com.microsoft", 1), (DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        ir_version=IR_VERSION,
        functions=list(functions),
    )


def copies_of(shape: tuple[int, ...]) -> int:
    """R: as many dense layers as no cache holds, within what one model file may take."""
    layer_bytes = 4 * shape[0] * shape[1]
    return max(1, min(-(-_COPIES_BYTES // layer_bytes), _LARGEST_MODEL_BYTES // layer_bytes, 128))
