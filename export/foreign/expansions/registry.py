"""Which operators can be written out, and by what."""

from collections.abc import Callable

from ..bodies import Body
from ..operators import operator
from ..weights import Derived, has_references, parts_of
from .batches import batched_matmul
from .block_quantised import matmul_nbits
from .convolutions import convolution
from .expansion import Context, Expansion
from .fused_products import attention, fused_gemm, fused_matmul
from .integer_operators import (
    dynamic_quantize_matmul,
    matmul_integer,
    matmul_integer_to_float,
    qgemm,
    qlinear_matmul,
)
from .recurrent import recurrent

_MICROSOFT = "com.microsoft"
Expand = Callable[[Body, int, Context], Expansion | str | None]

_EXPANSIONS: dict[tuple[str, str], Expand] = {
    ("", "Conv"): convolution,
    ("", "GRU"): recurrent,
    ("", "LSTM"): recurrent,
    ("", "MatMul"): batched_matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    (_MICROSOFT, "MatMulIntegerToFloat"): matmul_integer_to_float,
    (_MICROSOFT, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    (_MICROSOFT, "QGemm"): qgemm,
    (_MICROSOFT, "Attention"): attention,
    (_MICROSOFT, "FusedGemm"): fused_gemm,
    (_MICROSOFT, "FusedMatMul"): fused_matmul,
    (_MICROSOFT, "MatMulNBits"): matmul_nbits,
}


_FLOATS = {"Attention", "Conv", "FusedGemm", "FusedMatMul", "GRU", "LSTM", "MatMul"}


def expansion_of(body: Body, place: int, context: Context) -> Expansion | str | None:
    """The expansion of a node; the reason in words where it has none; None where its operator is not known here."""
    node = body.nodes[place]
    expand = _EXPANSIONS.get(operator(node))
    if expand is None:
        return None
    if has_references(node):
        return "its attributes are those of the enclosing function, so that each caller may give others"
    try:
        found = expand(body, place, context)
    except _UNREADABLE as fault:
        return f"its attributes cannot be read: {fault}"
    if isinstance(found, Expansion) and node.op_type in _FLOATS and _is_dequantised(found):
        return f"a quantised {node.op_type} has no packed form"
    return found


_UNREADABLE = (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError)
"""What a file raises whose attributes are of other types than the operator's."""


def _is_dequantised(expansion: Expansion) -> bool:
    """Whether a weight comes from integers, which ONNX Runtime may multiply as such."""
    steps = (part for constant in expansion.others for part in parts_of(constant) if isinstance(part, Derived))
    return any(step.node.op_type == "DequantizeLinear" for step in steps)
