"""What a check of a GPU found, and its page in Markdown, with what had been predicted beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..roofline import GPUS, SPARSE_FORMS, GpuModel, predict, random_layer
from .cases import KernelParity
from .speed import LayerTime, NotTimed

_TIMES_REMARK = (
    "Speed-up is the median of the ratios in turns, weights read from memory; the prediction is that of "
    "`kernels/gpu/roofline.py`. Masks suit their form: blocks are whole, `nm24` has no residual, the others are "
    "random. 5461 is no multiple of 8, for which cuBLAS is slow."
)


@dataclass(frozen=True)
class KernelCheck:
    """Everything that was found of the kernels on one GPU; `versions` are those of what they ran on, by name."""

    gpu: str
    compute_capability: str
    versions: dict[str, str]
    parity: tuple[KernelParity, ...]
    times: tuple[LayerTime, ...]
    left_out: tuple[NotTimed, ...]

    @property
    def mismatches(self) -> tuple[str, ...]:
        """In words; where there is one the check has failed."""
        return tuple(entry.mismatch for entry in self.parity if not entry.passed)


def page_name(gpu: str) -> str:
    """The file's name for a GPU: "NVIDIA A100-SXM4-80GB" is a100-sxm4-80gb.md."""
    words = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    return f"{words or 'gpu'}.md"


def render(check: KernelCheck, remark: str = "", parity: Sequence[str] = (), sections: Sequence[str] = ()) -> str:
    """The page in Markdown.

    Args:
        check: what was found.
        remark: said after the versions.
        parity: further rows of the table of errors.
        sections: the lines of further sections.
    """
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    ran = f"Run by `make gpu-check` on compute capability {check.compute_capability}; {versions}. {remark}"
    parts = [
        [f"# {check.gpu}"],
        [ran.rstrip()],
        _verdict_lines(check.mismatches),
        ["## Parity (run)"],
        [*_parity_lines(check.parity), *parity],
        ["## Layers in float16, against dense (run)"],
        [_TIMES_REMARK],
        _time_lines(check.gpu, check.times),
        ["## Not timed"],
        _left_out_lines(check.left_out),
    ]
    return "\n".join([line for part in parts for line in (*part, "")] + list(sections))


def _verdict_lines(mismatches: Sequence[str]) -> list[str]:
    """Whether everything agreed, and what did not."""
    if not mismatches:
        return ["Everything agreed."]
    return ["**Not everything agreed:**", *(f"- {mismatch}" for mismatch in mismatches)]


def _parity_lines(parity: Sequence[KernelParity]) -> list[str]:
    """A table of the largest error of each form."""
    lines = ["| what | largest error |", "|---|---|"]
    for form in dict.fromkeys(entry.form for entry in parity):
        worst = max((entry.error for entry in parity if entry.form == form), default=0.0)
        lines.append(f"| kernels of `{form}` against float64 | {worst:.2f} of what rounding allows |")
    return lines


def _time_lines(gpu: str, rows: Sequence[LayerTime]) -> list[str]:
    """A table of the times, with the predicted speed-up where there is a model of the GPU and the form."""
    model = _model_of(gpu)
    lines = [
        "| what | layer | density | tokens | µs | against | its µs | speed-up (run) | speed-up (predicted) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        timing = row.timing
        lines.append(
            f"| {row.what} | {row.out_features}x{row.in_features} | {row.density:.2g} | {row.tokens} | "
            f"{timing.seconds * 1e6:.1f} | {row.baseline} | {timing.baseline_seconds * 1e6:.1f} | "
            f"{timing.speedup:.2f} | {_predicted(row, model)} |"
        )
    return lines


def _left_out_lines(left_out: Sequence[NotTimed]) -> list[str]:
    """What was not timed, and why."""
    return [f"- {entry.what}: {entry.why}" for entry in left_out] or ["Nothing."]


def _model_of(gpu: str) -> GpuModel | None:
    return next((model for name, model in GPUS.items() if name in gpu.replace("-", " ").split()), None)


def _predicted(row: LayerTime, model: GpuModel | None) -> str:
    form = row.what.split()[0]
    if model is None:
        return "no model of this GPU"
    if form not in SPARSE_FORMS:
        return "no model"
    layer = replace(random_layer(row.out_features, row.in_features, row.density), residual_share=0.0)
    return f"{predict('dense', layer, row.tokens, model).seconds / predict(form, layer, row.tokens, model).seconds:.2f}"
