"""What a packed layout is: exact encoding, exact decoding, and the ONNX function that decodes it anywhere.

Legend: N out_features, K in_features, Z links (active weights), P = ceil(K / 8).
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

DOMAIN = "ai.hebbline"
DOMAIN_VERSION = 1
OPSET = 24
IR_VERSION = 11

Tensors = Mapping[str, NDArray]


class Layout(Protocol):
    """A way to store the active weights of one linear layer in ONNX tensors.

    The op `<op_type>` of domain `ai.hebbline` computes Y = X W^T (+ bias) from X [..., K], the tensors in the order of
    `tensor_names`, and an optional bias [N]; attribute `in_features` is K.
    """

    name: str
    op_type: str
    tensor_names: tuple[str, ...]

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack the active weights; active zeros are kept."""

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """The weight [N, K] and mask [N, K] that `encode` was given, bit for bit; off the mask the weight is +0."""

    def packed_bytes(self, out_features: int, in_features: int, links: int, value_bytes: int) -> int:
        """Bytes that a layer of this size takes."""

    def function(self) -> onnx.FunctionProto:
        """The op as a model-local function of standard ONNX ops: decode to dense, then Gemm."""


def check_mask_covers(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> None:
    """Raise ValueError where a weight off the mask is not zero, or the shapes differ."""
    if weight_NK.shape != mask_NK.shape:
        raise ValueError(f"weight {weight_NK.shape} and mask {mask_NK.shape} differ in shape")
    lost = int(np.count_nonzero(weight_NK[~mask_NK]))
    if lost:
        raise ValueError(f"{lost} weights off the mask are not zero")
