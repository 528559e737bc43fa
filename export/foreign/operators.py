"""Operators that have weights: which of their inputs these are, and which number stands for zero there."""

from dataclasses import dataclass

from onnx import NodeProto

_STANDARD, _MICROSOFT = "", "com.microsoft"


@dataclass(frozen=True)
class _Weights:
    """Places of the inputs that are weights, and of the zero point that belongs to all of them."""

    places: tuple[int, ...]
    zero_point: int | None = None


_OPERATORS: dict[tuple[str, str], _Weights] = {
    (_STANDARD, "MatMul"): _Weights((0, 1)),
    (_STANDARD, "Gemm"): _Weights((0, 1)),
    (_STANDARD, "Conv"): _Weights((1,)),
    (_STANDARD, "ConvTranspose"): _Weights((1,)),
    (_STANDARD, "DeformConv"): _Weights((1,)),
    (_STANDARD, "LSTM"): _Weights((1, 2)),
    (_STANDARD, "GRU"): _Weights((1, 2)),
    (_STANDARD, "RNN"): _Weights((1, 2)),
    (_STANDARD, "Gather"): _Weights((0,)),
    (_STANDARD, "ConvInteger"): _Weights((1,), 3),
    (_STANDARD, "MatMulInteger"): _Weights((1,), 3),
    (_STANDARD, "QLinearMatMul"): _Weights((3,), 5),
    (_STANDARD, "QLinearConv"): _Weights((3,), 5),
    (_MICROSOFT, "QGemm"): _Weights((3,), 5),
    (_MICROSOFT, "DynamicQuantizeMatMul"): _Weights((1,), 3),
    (_MICROSOFT, "MatMulIntegerToFloat"): _Weights((1,), 5),
    (_MICROSOFT, "DynamicQuantizeLSTM"): _Weights((1, 2)),
    (_MICROSOFT, "FusedMatMul"): _Weights((0, 1)),
    (_MICROSOFT, "FusedGemm"): _Weights((0, 1)),
    (_MICROSOFT, "FusedConv"): _Weights((1,)),
    (_MICROSOFT, "Attention"): _Weights((1,)),
    (_MICROSOFT, "QAttention"): _Weights((1,), 7),
    (_MICROSOFT, "MatMulNBits"): _Weights((1,)),
    (_MICROSOFT, "GatherBlockQuantized"): _Weights((0,)),
    (_MICROSOFT, "EmbedLayerNormalization"): _Weights((2, 3, 4)),
}


def operator(node: NodeProto) -> tuple[str, str]:
    """Domain and type of a node, the standard domain as ""."""
    return ("" if node.domain == "ai.onnx" else node.domain), node.op_type


def has_weights(node: NodeProto) -> bool:
    """Whether it is an operator that is known to have weights."""
    return operator(node) in _OPERATORS or operator(node) == (_STANDARD, "Einsum")


def weight_places(node: NodeProto) -> list[int]:
    """The inputs of a node that can be weights and are there."""
    known = _OPERATORS.get(operator(node))
    if operator(node) == (_STANDARD, "Einsum"):
        return [place for place, name in enumerate(node.input) if name]
    places = known.places if known is not None else ()
    return [place for place in places if place < len(node.input) and node.input[place]]


def zero_point_name(node: NodeProto) -> str:
    """The value that counts as zero in the weights of a node, "" where that is 0."""
    known = _OPERATORS.get(operator(node))
    place = None if known is None else known.zero_point
    return node.input[place] if place is not None and place < len(node.input) else ""
