"""`docs/gpu/<gpu>.md`: everything that the check found on one GPU, with what had been predicted beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ....kernels.gpu.check.cases import KernelParity
from ....kernels.gpu.check.speed import LayerTime, NotTimed
from ....kernels.gpu.check.tables import TIMES_REMARK, left_out_lines, parity_lines, time_lines, verdict_lines
from .layers import TensorRtLayer


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
    left_out: Sequence[NotTimed]
    tensorrt: Sequence[TensorRtLayer]
    mismatches: Sequence[str]


def render_page(check: GpuCheck) -> str:
    """The page in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    return "\n".join(
        [
            f"# {check.gpu}",
            "",
            f"Run by `make gpu-check` on compute capability {check.compute_capability}; {versions}.",
            "",
            *verdict_lines(check.mismatches),
            "",
            "## Parity (run)",
            "",
            *parity_lines(check.parity),
            *_engine_lines(check),
            "",
            "## Layers in float16, against dense (run)",
            "",
            TIMES_REMARK,
            "",
            *time_lines(check.gpu, check.kernels),
            "",
            "## Not timed",
            "",
            *left_out_lines(check.left_out),
            "",
            "## TensorRT on a 2:4 layer: sparse tactics allowed, against not allowed (run)",
            "",
            *_tensorrt_lines(check),
            "",
        ]
    )


def _engine_lines(check: GpuCheck) -> list[str]:
    return [
        f"| {engine.runtime} {engine.version} engine in {engine.precision}, logits | {engine.engine:.1e} from torch in "
        f"float32; torch in {engine.precision}: {engine.torch:.1e} |"
        for engine in check.engines
    ]


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


def _word(verdict: bool | None) -> str:
    return "not reported" if verdict is None else "yes" if verdict else "no"
