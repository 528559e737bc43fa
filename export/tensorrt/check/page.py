"""`docs/gpu/<gpu>.md`: everything that the check found on one GPU, with what had been predicted beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....kernels.gpu.roofline import GPUS, GpuModel, predict, random_layer
from .cases import TIMED_SHAPE, KernelParity
from .layers import LayerTime, TensorRtLayer


@dataclass(frozen=True)
class EngineCheck:
    """A whole model in an engine: the runtime and its version, the precision, and largest logit differences to torch in
    float32 of the engine and of torch in that precision."""

    runtime: str
    version: str
    precision: str
    engine: float
    torch: float


@dataclass(frozen=True)
class GpuCheck:
    """Everything that was found. `mismatches` are in words; where there is one the check has failed."""

    gpu: str
    compute_capability: str
    versions: dict[str, str]
    parity: Sequence[KernelParity]
    engines: Sequence[EngineCheck]
    kernels: Sequence[LayerTime]
    tensorrt: Sequence[TensorRtLayer]
    mismatches: Sequence[str]


def page_name(gpu: str) -> str:
    """The file's name for a GPU: "NVIDIA A100-SXM4-80GB" is a100-sxm4-80gb.md."""
    words = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    return f"{words or 'gpu'}.md"


def render_page(check: GpuCheck) -> str:
    """The page in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    verdict = "Everything agreed." if not check.mismatches else "**Not everything agreed:**"
    mismatches = "".join(f"\n- {mismatch}" for mismatch in check.mismatches)
    return "\n".join(
        [
            f"# {check.gpu}",
            "",
            f"Run by `make gpu-check` on compute capability {check.compute_capability}; {versions}.",
            "",
            verdict + mismatches,
            "",
            "## Parity (run)",
            "",
            *_parity_lines(check),
            "",
            f"## Layers of {TIMED_SHAPE[0]} by {TIMED_SHAPE[1]} in float16, against dense (run)",
            "",
            "Speed-up is the median of the ratios in turns; the prediction is that of `kernels/gpu/roofline.py`.",
            "",
            *_kernel_lines(check),
            "",
            "## TensorRT on a 2:4 layer: sparse tactics allowed, against not allowed (run)",
            "",
            *_tensorrt_lines(check),
            "",
        ]
    )


def _parity_lines(check: GpuCheck) -> list[str]:
    lines = ["| what | largest error |", "|---|---|"]
    for form in dict.fromkeys(entry.form for entry in check.parity):
        worst = max((entry.error for entry in check.parity if entry.form == form), default=0.0)
        lines.append(f"| kernels of `{form}` against float64 | {worst:.2f} of what rounding allows |")
    lines += [
        f"| {engine.runtime} {engine.version} engine in {engine.precision}, logits | {engine.engine:.1e} from torch in "
        f"float32; torch in {engine.precision}: {engine.torch:.1e} |"
        for engine in check.engines
    ]
    return lines


def _kernel_lines(check: GpuCheck) -> list[str]:
    model = _model_of(check.gpu)
    lines = [
        "| form | density | tokens | µs | against | its µs | speed-up (run) | speed-up (predicted) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in check.kernels:
        predicted = f"{_predicted(row, model):.2f}" if model is not None else "no model of this GPU"
        timing = row.timing
        lines.append(
            f"| {row.what} | {row.density:.2g} | {row.tokens} | {timing.seconds * 1e6:.1f} | {row.baseline} | "
            f"{timing.baseline_seconds * 1e6:.1f} | {timing.speedup:.2f} | {predicted} |"
        )
    return lines


def _tensorrt_lines(check: GpuCheck) -> list[str]:
    lines = [
        "| tokens | µs | without µs | speed-up | eligible | sparse tactic picked | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {layer.tokens} | {layer.timing.seconds * 1e6:.1f} | {layer.timing.baseline_seconds * 1e6:.1f} | "
        f"{layer.timing.speedup:.2f} | {_word(layer.sparsity.eligible)} | {_word(layer.sparsity.picked)} | "
        f"{layer.sparsity.reason} |"
        for layer in check.tensorrt
    ]
    return lines


def _model_of(gpu: str) -> GpuModel | None:
    return next((model for name, model in GPUS.items() if name in gpu.replace("-", " ").split()), None)


def _predicted(row: LayerTime, model: GpuModel) -> float:
    # The masks that are timed suit their form: blocks are whole, and 2:4 has no residual.
    layer = replace(random_layer(*TIMED_SHAPE, row.density), residual_share=0.0)
    return (
        predict("dense", layer, row.tokens, model).seconds
        / predict(row.what.split()[0], layer, row.tokens, model).seconds
    )


def _word(verdict: bool | None) -> str:
    return "not reported" if verdict is None else "yes" if verdict else "no"
