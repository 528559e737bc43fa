"""`python -m hebbline.kernels.gpu.check`, and from a source tree `python from_source.py kernels.gpu.check`."""

import argparse
import sys
from pathlib import Path

from .run import SECONDS, GpuUnavailableError, run_kernel_check


def main(arguments: list[str]) -> int:
    """Compare the kernels with float64 and time them on this machine's GPU; exit code 0, 1 (wrong) or 2 (no GPU)."""
    parser = argparse.ArgumentParser(prog="python -m hebbline.kernels.gpu.check", description=main.__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs/gpu"), help="where the GPU's page is written")
    parser.add_argument("--budget", type=float, default=SECONDS, metavar="SECONDS", help="for the times")
    options = parser.parse_args(arguments)
    try:
        check, page = run_kernel_check(options.docs, lambda line: print(line, flush=True), options.budget)
    except GpuUnavailableError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{check.gpu}: {len(check.parity)} comparisons, {len(check.times)} times; see {page}")
    for mismatch in check.mismatches:
        print(f"wrong: {mismatch}", file=sys.stderr)
    return 1 if check.mismatches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
