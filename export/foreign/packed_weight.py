"""One weight in its packed form: the op, its function for a file's opset, and its tensors.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto

from ..layouts import Layout
from .compact_layout import CompactLayout
from .opsets import function_for_opset, shielded, tensor_type
from .restoring import Restorable


@dataclass(frozen=True)
class PackedWeight:
    """One weight in its packed form: the op, its function, and what makes its tensors, in the op's order.

    `key` tells weights apart; names of the tensors are built on `name`. `element_type` is that of the product's input
    and output in the file: where it is not float32, they are cast around the op. `restorable`
    is the dense tensor that can be decoded from it, should something else read that.
    """

    key: str
    name: str
    op_type: str
    in_features: int
    function: FunctionProto
    encode: Callable[[], dict[str, NDArray]]
    element_type: int = TensorProto.FLOAT
    restorable: Restorable | None = None

    @property
    def no_bias(self) -> tuple[str, ...]:
        """The last input of the op where there is no bias: "", or none at all where the op takes no bias."""
        return ("",) if "bias" in self.function.input else ()


@dataclass(frozen=True)
class Target:
    """What functions must fit in a file: its opset, and whether its activations are quantised (see `shielded`)."""

    opset: int
    quantised: bool = False


def pack_weight(
    key: str,
    name: str,
    layout: Layout,
    weight_NK: NDArray[np.float32],
    mask_NK: NDArray[np.bool_],
    target: Target,
    activation_scale: float = 0.0,
) -> PackedWeight:
    """A weight in a layout, with the op's function for a file; raises OpsetError where there is none.

    `activation_scale` is that of all tokens, for values that round X; 0 for each token's own.
    """

    def encode() -> dict[str, NDArray]:
        tensors = layout.encode(weight_NK, mask_NK)
        if activation_scale:
            tensors["activation_scale"] = np.array([activation_scale], np.float32)
        return tensors

    types = {}
    if not isinstance(layout, CompactLayout):  # whose function says no types
        empty = layout.encode(np.zeros((1, 1), np.float32), np.zeros((1, 1), bool))
        types = {part: tensor_type(array) for part, array in empty.items()}
    function = shielded(layout.function()) if target.quantised else layout.function()
    function = function_for_opset(function, target.opset, types)
    return PackedWeight(key, name, layout.op_type, weight_NK.shape[1], function, encode)
