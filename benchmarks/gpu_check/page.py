"""`docs/gpu/<gpu>.md`: everything that the check found on one GPU, with what had been predicted beside it."""

from dataclasses import dataclass

from ...kernels.gpu.check.tables import KernelCheck, render
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
class GpuCheck(KernelCheck):
    """Everything that was found, also of engines; `failures` are what was wrong with these, in words."""

    engines: tuple[EngineCheck, ...]
    tensorrt: tuple[TensorRtLayer, ...]
    failures: tuple[str, ...]

    @property
    def mismatches(self) -> tuple[str, ...]:
        """Of kernels and engines, in words; where there is one the check has failed."""
        return super().mismatches + self.failures


def render_page(check: GpuCheck) -> str:
    """The page in Markdown."""
    title = "## TensorRT on a 2:4 layer: sparse tactics allowed, against not allowed (run)"
    return render(check, parity=_engine_lines(check), sections=[title, "", *_tensorrt_lines(check), ""])


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
