"""The forms of one model that are timed side by side: dense and sparse, each in several precisions."""

from dataclasses import dataclass
from typing import Literal

MODEL_FILE = "model.onnx"
Kv = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Variant:
    """One form: `bits` of a dense one's weights (32: float32), `values` of a sparse one's; `kv`: keys and values.

    `int8_head`: lm_head finds a shortlist in int8 and computes the best logits exactly.
    """

    name: str
    sparse: bool
    bits: int = 32
    values: str = "float32"
    kv: Kv = "float32"
    int8_head: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("dense float32", sparse=False),
        Variant("sparse float32", sparse=True),
        Variant("sparse int8", sparse=True, values="int8", kv="int8", int8_head=True),
        Variant("dense 8-bit", sparse=False, bits=8),
        Variant("sparse float32 int8-head", sparse=True, int8_head=True),
        Variant("sparse bfloat16", sparse=True, values="bfloat16", kv="bfloat16", int8_head=True),
        Variant("dense 4-bit", sparse=False, bits=4),
        Variant("sparse int4", sparse=True, values="int4", kv="int8", int8_head=True),
    )
}
"""In the order in which they are timed: what tells most comes first, as the time may end before the last."""
BASELINE = "dense float32"
