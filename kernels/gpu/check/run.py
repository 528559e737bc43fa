"""The kernels compared with float64 and timed against cuBLAS, and the page: with torch, Triton and NumPy alone.

This imports nothing that these three do not bring, so that it runs from a source tree on a machine that has only them.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy
import torch

from .cases import PARITY_SHAPES, KernelParity, check_kernels
from .speed import Clock, LayerTime, NotTimed, Sweep, time_kernels
from .tables import KernelCheck, page_name, render

Progress = Callable[[str], None]
_Row = TypeVar("_Row", KernelParity, LayerTime | NotTimed)
SECONDS = 420.0
"""For the times. The comparison and the compiler come on top; all of it should take less than 8 minutes."""


NO_TENSORRT = "TensorRT was not there: no engine and no plugin was run."


class GpuUnavailableError(RuntimeError):
    """There is no GPU that torch and Triton can use; the message is one line that says what to do."""


def check_conditions() -> None:
    """That torch sees a GPU and Triton is there, and compiles.

    Raises:
        GpuUnavailableError: something is missing.
    """
    if not torch.cuda.is_available():
        raise GpuUnavailableError(
            f"torch {torch.__version__} sees no NVIDIA GPU: install a build with CUDA, and NVIDIA's driver"
        )
    try:
        import triton
    except ImportError as error:
        raise GpuUnavailableError("the Triton language is not installed: pip install triton") from error
    if triton.knobs.runtime.interpret:
        raise GpuUnavailableError("TRITON_INTERPRET is set: unset it to run kernels on the GPU")


def run_kernel_check(docs: Path, progress: Progress, seconds: float = SECONDS) -> tuple[KernelCheck, Path]:
    """Compare and time all kernels, write `docs/<gpu>.md`, and return what was found and the page's path.

    Raises:
        GpuUnavailableError: see `check_conditions`.
    """
    check_conditions()
    clock = Clock(seconds)
    parity = tuple(_told(check_kernels("cuda", PARITY_SHAPES), progress))
    rows = tuple(_told(time_kernels(Sweep(), clock), progress))
    major, minor = torch.cuda.get_device_capability(0)
    check = KernelCheck(
        gpu=torch.cuda.get_device_name(0),
        compute_capability=f"{major}.{minor}",
        versions=installed_versions(),
        parity=parity,
        times=tuple(row for row in rows if isinstance(row, LayerTime)),
        left_out=tuple(row for row in rows if isinstance(row, NotTimed)),
    )
    page = docs / page_name(check.gpu)
    write_page(page, render(check, NO_TENSORRT))
    return check, page


def _told(rows: Iterable[_Row], progress: Progress) -> Iterator[_Row]:
    """The rows, each told as it comes."""
    for row in rows:
        progress(describe(row))
        yield row


def describe(row: KernelParity | LayerTime | NotTimed) -> str:
    """One line on what was found."""
    if isinstance(row, KernelParity):
        sizes = f"{row.tokens}x{row.out_features}x{row.in_features}"
        return f"{row.form} in {row.values} on {sizes}: {row.failure or f'{row.error:.2f} of what rounding allows'}"
    if isinstance(row, NotTimed):
        return f"not timed: {row.what}: {row.why}"
    return (
        f"{row.what} on {row.out_features}x{row.in_features} at {row.density:.2g}, {row.tokens} tokens: "
        f"{row.timing.seconds * 1e6:.1f} µs, {row.timing.speedup:.2f} times as fast as {row.baseline}"
    )


def installed_versions() -> dict[str, str]:
    """Of what the check runs on."""
    import triton

    return {
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "Triton": triton.__version__,
        "NumPy": numpy.__version__,
    }


def write_page(page: Path, text: str) -> None:
    """Write whole or not at all."""
    page.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=page.parent, suffix=".md", delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(page)
