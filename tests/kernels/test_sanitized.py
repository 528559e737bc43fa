"""The kernels and the decoder under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess

import pytest
from builds import ROOT, SANITIZED, locked

pytestmark = pytest.mark.timeout(1800)  # the compiler may share the machine


def build(target):
    """Configures and builds a program of CMakeLists.txt; what did not change is not built again."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    configure = ["cmake", "-S", ROOT, "-B", SANITIZED, "-DHEBBLINE_SANITIZE=ON", "-DHEBBLINE_TESTS=ON"]
    with locked(SANITIZED):
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", SANITIZED, "--target", target, "--parallel", "2"], check=True)
    return SANITIZED / target


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("linear_check", ("amx-emulated tile", "9000 damaged tensors")),
        ("scores_check", ("by links", "by pairs")),
        ("draws_check", ("64 races, 48 selections",)),
        ("links_check", ("54 products, Adam",)),
    ],
)
def test_no_kernel_reads_or_writes_where_it_must_not(target, said):
    program = build(target)
    environment = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    environment.pop("HEBBLINE_ISA", None)
    result = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(text in result.stdout for text in said)
