"""Whether a layer whose weight is stored in integers is packed: by times measured here, against what ONNX Runtime makes
of the layer as it stands.

The cost model knows dense float32 products only. ONNX Runtime multiplies integers on other kernels, for int8 and for
four bits, and which it takes depends on the file.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ...kernels import library_path
from ..layouts import Layout
from .autotune import interleaved_medians, timing
from .choosing import Decision, Times, check_gain
from .document import Document
from .layer_check import open_session
from .linears import Linear, QuantisedInput
from .options import PackOptions
from .packed_weight import PackedWeight
from .quantised import dense_model, packed_model
from .rows import Weight

_TOKENS = {"latency": (1, 16), "throughput": (64,), "size": (1,)}
"""Numbers of tokens at which a layer must be faster, the objective's own first."""


def decide_quantised(
    weight: Weight,
    given: QuantisedInput | None,
    layouts: Sequence[Layout],
    packed_of: Callable[[Layout], PackedWeight],
    document: Document,
    stored_bytes: int,
    options: PackOptions,
) -> Decision:
    """Choose for one weight.

    Args:
        weight: it, and its first layer.
        given: the layer's input where that is quantised too.
        layouts: the candidates.
        packed_of: the weight in a layout.
        document: the model.
        stored_bytes: what the file holds for the weight now.
        options: of the whole run.
    """
    rows, columns = weight.mask_NK.shape
    links = int(np.count_nonzero(weight.mask_NK))
    if links == weight.mask_NK.size:
        return Decision(None, stored_bytes, "left: none of its weights is zero")
    layout = min(layouts, key=lambda layout: layout.packed_bytes(rows, columns, links))
    size = layout.packed_bytes(rows, columns, links)
    candidate = packed_of(layout)
    with timing():
        medians = _measure(weight.layer, given, candidate, document, (rows, columns), options)
    times = Times(*medians[0], "us measured")
    figures = "; ".join(
        f"{tokens} token{'s' * (tokens > 1)} {dense:.1f} us as it stands, {packed:.1f} us packed"
        for tokens, (dense, packed) in zip(_TOKENS[options.objective], medians, strict=True)
    )
    kernels = "in integers" if given is not None else "from integers"
    if options.objective != "size" and any(packed >= dense for dense, packed in medians):
        return Decision(
            None, stored_bytes, f"left: ONNX Runtime multiplies it {kernels}, as fast or faster ({figures})", times
        )
    reason = (
        f"{layout.name}, with the file's own scales: measured at {figures}"
        if given is not None
        else f"{layout.name}: {figures}"
    )
    return check_gain(Decision(layout, size, reason, times), stored_bytes, weight.stays, options)


def _measure(
    layer: Linear,
    given: QuantisedInput | None,
    packed: PackedWeight,
    document: Document,
    shape: tuple[int, ...],
    options: PackOptions,
) -> list[tuple[float, float]]:
    """Median microseconds of the layer as it stands and packed, for each number of tokens."""
    rows, columns = shape
    sessions = {
        "dense": open_session(dense_model(layer, given, document, columns, rows)),
        "packed": open_session(packed_model(packed, given, document, rows), [str(library_path())]),
    }
    rng, medians = np.random.default_rng(0), []
    for tokens in _TOKENS[options.objective]:
        x_TK = rng.standard_normal((tokens, columns)).astype(np.float32)
        if given is not None:
            lowest = given.centre - 128
            x_TK = np.clip(np.rint(x_TK * 40) + given.zero, lowest, lowest + 255).astype(given.dtype)
        found = interleaved_medians(sessions, x_TK, (tokens, rows), np.zeros(0, np.int64))
        medians.append((found["dense"], found["packed"]))
    return medians
