"""What a packed layout is: encoding, decoding, and the ONNX function that decodes it anywhere.

Legend: N out_features, K in_features, Z links (active weights).
"""

from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from .values import Tensors, ValueType

DOMAIN = "ai.hebbline"
DOMAIN_VERSION = 1
OPSET = 23
IR_VERSION = 11


class Layout(Protocol):
    """A way to store the active weights of one linear layer in ONNX tensors.

    The op `<op_type>` of domain `ai.hebbline` computes Y = X W^T (+ bias) from X [..., K], the tensors in the order of
    `tensor_names`, and an optional bias [N]; attribute `in_features` is K. The rounding of X that comes with the value
    type (see `values`) is part of the op.

    An op's name ends in its value type where the function's body depends on it ("BitmaskLinearInt8"). Functions could
    share a name and differ in `overload`, but the reference evaluator of ONNX then runs one body for all of them.
    """

    name: str
    """Unique among layouts: "bitmask" for float32 values, "bitmask-int8" for others."""
    op_type: str
    tensor_names: tuple[str, ...]
    values: ValueType
    needs_blocks: int
    """The size of the square blocks that a mask must be made of; 0 where it can hold any mask."""

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack the active weights; active zeros are kept. Raises ValueError where the layout cannot hold the layer."""

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """The weight [N, K] and mask [N, K] that the tensors stand for; off the mask the weight is +0.

        With float32 values they are what `encode` was given, bit for bit. Raises ValueError on damaged tensors.
        """

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """Bytes that a layer of this size takes."""

    def function(self) -> onnx.FunctionProto:
        """The op as a model-local function of standard ONNX ops: decode to dense, then Gemm."""


def layout_name(structure: str, values: ValueType) -> str:
    """The name of a structure with these values; float32 goes without saying."""
    return structure if values.name == "float32" else f"{structure}-{values.name}"


def check_mask_covers(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> None:
    """Raise ValueError where a weight off the mask is not zero, or the shapes differ."""
    if weight_NK.shape != mask_NK.shape:
        raise ValueError(f"weight {weight_NK.shape} and mask {mask_NK.shape} differ in shape")
    lost = int(np.count_nonzero(weight_NK[~mask_NK]))
    if lost:
        raise ValueError(f"{lost} weights off the mask are not zero")


def check_countable(links: int) -> None:
    """Raise ValueError where int32, in which kernels and functions count the links of a layer, cannot hold them."""
    if links > np.iinfo(np.int32).max:
        raise ValueError(f"{links} links are more than int32 can count")
