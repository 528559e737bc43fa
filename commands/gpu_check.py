"""`hebbline gpu-check`, which `make gpu-check` calls."""

from pathlib import Path

from ..artifacts import CheckError, InputError
from ..console import Parser, console


def main(arguments: list[str]) -> int:
    """Build, run, compare and time everything that needs an NVIDIA GPU, and write a page of documentation."""
    parser = Parser(prog="hebbline gpu-check", description="Check engines and kernels on this machine's NVIDIA GPU.")
    parser.add_argument("--model", type=Path, default=None, help="a model directory; a small random one without it")
    parser.add_argument("--docs", type=Path, default=Path("docs/gpu"), help="where the GPU's page is written")
    values = parser.parse_args(arguments)
    from ..export.tensorrt.build import installed_runtimes
    from ..runtime.gpu import find_gpu

    gpu = find_gpu()  # before torch is loaded, so that a machine without one is told at once
    if not installed_runtimes(gpu.compute_capability):
        return _check_kernels(values.docs)
    from ..benchmarks.gpu_check.run import run_gpu_check

    with console.status("checking the GPU") as status:
        check, page = run_gpu_check(values.model, values.docs, lambda stage: status.update(stage))
    console.print(f"{check.gpu}: {len(check.parity)} kernel comparisons, {len(check.engines)} engines; see {page}")
    if check.mismatches:
        raise CheckError(f"{len(check.mismatches)} mismatches on {check.gpu}, the first: {check.mismatches[0]}")
    return 0


def _check_kernels(docs: Path) -> int:
    """Without TensorRT: the kernels alone."""
    from ..kernels.gpu.check.run import GpuUnavailableError, run_kernel_check

    try:
        check, page = run_kernel_check(docs, console.print)
    except GpuUnavailableError as error:
        raise InputError(str(error)) from error
    console.print(f"{check.gpu}: {len(check.parity)} kernel comparisons, no TensorRT; see {page}")
    if check.mismatches:
        raise CheckError(f"{len(check.mismatches)} mismatches on {check.gpu}, the first: {check.mismatches[0]}")
    return 0
