"""The kernels on AArch64: compiled on this machine, checked against float64 under an emulator.

One processor has the dot product of int8 and what came after it, and one has not. What the programs check is in their
own sources.
"""

import os
import platform
import re
import shutil
import subprocess

import pytest
from builds import AARCH64, ROOT, locked
from objects import innermost_loops, instruction_sets, read_functions, sources

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"
PROCESSORS = {"cortex-a72": {"scalar", "neon"}, "max": {"scalar", "neon", "neon-dot", "neon-i8mm"}}
CHECKS = ("linear_check", "attention_check", "scores_check", "draws_check", "links_check")

pytestmark = [
    pytest.mark.skipif(
        None in (shutil.which("cmake"), shutil.which("ninja"), shutil.which(COMPILER), shutil.which(EMULATOR)),
        reason=f"needs cmake, ninja, {COMPILER} and {EMULATOR}: apt-get install g++-aarch64-linux-gnu qemu-user",
    ),
    pytest.mark.skipif(platform.machine() == "aarch64", reason="on AArch64 the other tests check the kernels"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def build():
    toolchain = ROOT / "cmake/aarch64-linux-gnu.cmake"
    options = ["-DHEBBLINE_TESTS=ON", "-DHEBBLINE_MANYLINUX=OFF", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    configure = ["cmake", "-S", ROOT, "-B", AARCH64, "-G", "Ninja", *options]
    with locked(AARCH64):
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", AARCH64, "--parallel", "2"], check=True, stdout=subprocess.DEVNULL)
        # The wheel for AArch64 is built in the same folder.
        yield AARCH64


def emulate(program, processor):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEBBLINE_")}
    command = [EMULATOR, "-L", LIBRARIES, "-cpu", processor, program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("processor", PROCESSORS)
def test_products_agree_with_float64(build, processor):
    said = emulate(build / "linear_check", processor)
    right = set(re.findall(r"^(\S+ \S+): \d+ products, 0 wrong$", said, re.M))
    assert {f"{isa} csr" for isa in PROCESSORS[processor]} <= right
    for isa in ("neon-dot", "neon-i8mm"):
        assert (f"{isa} quad" in right) == (isa in PROCESSORS[processor])
    assert "9000 damaged tensors" in said


@pytest.mark.parametrize("processor", PROCESSORS)
def test_attention_head_and_norm_agree_with_float64(build, processor):
    said = emulate(build / "attention_check", processor)
    assert set(re.findall(r"^(\S+) head, norm, sample$", said, re.M)) == PROCESSORS[processor]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_training_uses_agrees_with_float64(build, processor):
    assert "by links: 200 masks" in emulate(build / "scores_check", processor)
    count = len(PROCESSORS[processor])
    assert f"64 races, 48 selections, on {count} instruction sets" in emulate(build / "draws_check", processor)
    said = emulate(build / "links_check", processor)
    assert set(re.findall(r"^(\S+): 54 products, Adam$", said, re.M)) == PROCESSORS[processor]


@pytest.mark.parametrize("library", ["libhebbline_kernels.so", "libhebbline_train.so"])
def test_the_libraries_are_for_this_architecture_and_define_what_they_use(build, library):
    header = subprocess.run(["readelf", "-h", build / library], check=True, capture_output=True, text=True).stdout
    assert "AArch64" in header
    symbols = subprocess.run(["nm", "-DCu", build / library], check=True, capture_output=True, text=True).stdout
    assert "hebbline::" not in symbols


FILES = [file for isa in instruction_sets("aarch64") for file in sources(isa) if file.startswith("kernels/")]


@pytest.mark.parametrize("file", FILES)
def test_loops_over_products_write_no_vector_to_the_stack(build, file):
    """As test_registers.py has it for x86-64."""
    path = build / f"CMakeFiles/hebbline_kernels.dir/{file}.o"
    for function, instructions in read_functions(path, "aarch64-linux-gnu-objdump").items():
        for loop in innermost_loops(instructions):
            if not any(re.match(r"fmla|fmadd|udot|sdot|usdot|smmla", operation) for _, operation, _ in loop):
                continue
            lines = [f"{operation} {operands}" for _, operation, operands in loop]
            spilled = [line for line in lines if re.match(r"st(r|p|ur) q\d+,.*\[sp", line)]
            assert not spilled, f"{function}: {spilled}"


def test_no_file_for_aarch64_includes_a_header_of_x86():
    files = [file for suffix in instruction_sets("aarch64") for file in sources(suffix)]
    assert len(files) >= 6
    for file in files:
        assert "immintrin.h" not in (ROOT / file).read_text()
