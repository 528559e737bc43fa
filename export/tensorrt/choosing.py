"""In which form an engine holds each linear layer, and the reason in words for the report.

Legend: N out_features, K in_features of a linear layer.

TensorRT's own products are dense, or 2:4 where it finds that faster. Any other sparse product is a plugin (see
`packed`). With plugins, a layer takes the form whose product is predicted to be the fastest at one token: dense,
gap-coded rows, bitmask, compressed rows, blocks, or 2:4 with a residual, W = W24 + R, where W24 holds the two largest
links of every four inputs, R the others, and the two sum to W bit for bit. The prediction is `kernels/gpu/roofline`;
nothing is timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.gpu.packing import PACKERS, gap_padding
from ...kernels.gpu.roofline import GPUS, SPARSE_FORMS, GpuModel, Layer, predict, weight_bytes
from ...runtime.engines import Gpu
from ..layouts.nm24 import fitting_links
from ..report import LayerReport
from .packed import holds

DENSE = "dense"
FORMS = SPARSE_FORMS
BLOCK = 32
"""Blocks of this size are looked for; see `packing.pack_block`."""
LATENCY_TOKENS = 1
LEAST_GAIN = 1.2
"""A form must be predicted to be this many times as fast as dense: the prediction leaves out launches and latency."""
_CHUNK_TOKENS = 256
"""The tokens of a chunk of a prompt (`StepLimits`): what a choice for one token means for prompts is in its reason."""
_STAND_INS = {"8.0": "A100", "9.0": "H100", "10.0": "H100"}
_SMALLEST = "L4"


@dataclass(frozen=True)
class FormChoice:
    """The form of a layer ("dense", or one of `packing`), its bytes and those of it dense, both in 16 bit, and why."""

    form: str
    bytes: int
    dense_bytes: int
    reason: str


def model_of(gpu: Gpu) -> tuple[GpuModel, str]:
    """The GPU that predictions are made for, and a remark: the very one, or one of its kind that stands in for it."""
    words = gpu.name.replace("-", " ").split()
    for name, model in GPUS.items():
        if name in words:
            return model, f"predicted for {name}"
    stand_in = _STAND_INS.get(gpu.compute_capability, _SMALLEST)
    return GPUS[stand_in], f"predicted for {stand_in}, which stands in for {gpu.name}"


def choose_form(mask_NK: NDArray[np.bool_], gpu: Gpu) -> FormChoice:
    """The form that is predicted to be the fastest at one token; dense where none gains enough (`LEAST_GAIN`)."""
    model, remark = model_of(gpu)
    layer = measured_layer(mask_NK)
    forms = FORMS if holds(*mask_NK.shape) else ()
    seconds = {form: predict(form, layer, LATENCY_TOKENS, model).seconds for form in (DENSE, *forms)}
    fastest = min(seconds, key=lambda form: seconds[form])
    best = fastest if seconds[DENSE] >= LEAST_GAIN * seconds[fastest] else DENSE
    figures = ", ".join(f"{form} {seconds[DENSE] / seconds[form]:.2f}" for form in forms)
    chunk = predict(DENSE, layer, _CHUNK_TOKENS, model).seconds / predict(best, layer, _CHUNK_TOKENS, model).seconds
    why = "is the fastest" if best != DENSE else f"stays: no form is {LEAST_GAIN:g} times as fast"
    reason = (
        f"{best} {why} at {LATENCY_TOKENS} token, {remark} (times as fast as dense: {figures}); at {_CHUNK_TOKENS} "
        f"tokens {chunk:.2f} times as fast; {_fit(layer)}"
    )
    dense_bytes = int(weight_bytes(DENSE, layer))
    # The bytes of a form follow from the mask alone: the mask itself is packed.
    size = dense_bytes if best == DENSE else PACKERS[best](mask_NK.astype(np.float16), mask_NK).bytes
    return FormChoice(best, size, dense_bytes, reason)


def stay_dense(mask_NK: NDArray[np.bool_], why: str) -> FormChoice:
    """A dense layer, with the reason."""
    layer = measured_layer(mask_NK)
    size = int(weight_bytes(DENSE, layer))
    return FormChoice(DENSE, size, size, f"dense, absent links are zeros: {why}; {_fit(layer)}")


def measured_layer(mask_NK: NDArray[np.bool_]) -> Layer:
    """What the prediction needs to know of a mask."""
    links = int(np.count_nonzero(mask_NK))
    residual = 1 - fitting_links(mask_NK) / max(1, links) if links else 0.0
    rows, columns = mask_NK.shape
    padded = np.pad(mask_NK, [(0, -rows % BLOCK), (0, -columns % BLOCK)])
    grid = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    return Layer(
        rows, columns, links / mask_NK.size, float(grid.any(axis=(1, 3)).mean()), residual, gap_padding(mask_NK)
    )


def layer_reports(masks: Mapping[str, NDArray[np.bool_]], choices: Mapping[str, FormChoice]) -> tuple[LayerReport, ...]:
    """The report's lines on what an engine holds."""
    return tuple(_line(name, masks[name], choice) for name, choice in sorted(choices.items()))


def _line(name: str, mask_NK: NDArray[np.bool_], choice: FormChoice) -> LayerReport:
    links = int(np.count_nonzero(mask_NK))
    layout = "nm24 + residual" if choice.form == "nm24" else choice.form
    rows, columns = mask_NK.shape
    density = links / mask_NK.size
    return LayerReport(name, rows, columns, links, density, layout, choice.bytes, choice.dense_bytes, choice.reason)


def _fit(layer: Layer) -> str:
    return f"{1 - layer.residual_share:.1%} of the links are 2:4"
