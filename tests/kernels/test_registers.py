"""Hot loops keep their sums in registers: seen in the machine code, since results are right either way.

A vector type wider than the registers, or sums that the compiler unrolls too late, go through the stack in every step,
which costs more than everything that vectors gain.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / ".build/release"
SOURCES = ("linear/csr", "linear/dense", "linear/gated", "attention/attention", "head/head", "norm/norm")
FILES = [f"{source}_{isa}" for isa in ("avx2", "avx512") for source in SOURCES] + [
    "linear/sell_avx512",
    "linear/pick_narrow_avx2",
]
INTEGER_FILES = ["linear/pick_narrow_avx2", "linear/quad_avx2"]

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")
PRODUCT = re.compile(r"vfmadd")
SUM_OF_INTEGERS = "vcvtdq2ps"
"""What a loop does that ends sums: it runs over groups of scales, not over products."""
INTEGER_PRODUCT = re.compile(r"vpmaddubsw|vpdpbusd")
VECTOR_TO_MEMORY = re.compile(r"%[xyz]mm\d+,(-?0x[0-9a-f]+)?\(")
VECTOR_TO_STACK = re.compile(r"%[xyz]mm\d+,(-?0x[0-9a-f]+)?\(%rsp")

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or None in (shutil.which("cmake"), shutil.which("ninja"), shutil.which("objdump")),
    reason="needs cmake, ninja and objdump, on x86-64",
)


@pytest.fixture(scope="module")
def objects():
    """The object files of the kernels, built as they are for users."""
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja"], check=True, stdout=subprocess.DEVNULL)
    paths = {file: f"CMakeFiles/hebbline_kernels.dir/kernels/{file}.cpp.o" for file in FILES + INTEGER_FILES}
    subprocess.run(["ninja", "-C", BUILD, *paths.values()], check=True, stdout=subprocess.DEVNULL)
    return {file: BUILD / path for file, path in paths.items()}


def read_functions(path):
    """The instructions (address, operation, operands) of each function of an object file."""
    listing = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    functions = {}
    for line in listing.stdout.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:", line):
            instructions = functions.setdefault(header[1], [])
        elif found := INSTRUCTION.match(line):
            instructions.append((int(found[1], 16), found[2], found[3]))
    return functions


def innermost_loops(instructions):
    """What stands between the target of a backward jump and the jump, where no other such pair lies within."""
    index = {address: number for number, (address, _, _) in enumerate(instructions)}
    loops = []
    for number, (_, operation, operands) in enumerate(instructions):
        target = re.match(r"[0-9a-f]+", operands)
        if operation.startswith("j") and target and index.get(int(target[0], 16), number + 1) <= number:
            loops.append((index[int(target[0], 16)], number))
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            yield instructions[first : last + 1]


@pytest.mark.parametrize("file", FILES)
def test_loops_over_float_products_write_no_vector_to_the_stack(objects, file):
    products = 0
    for function, instructions in read_functions(objects[file]).items():
        for loop in innermost_loops(instructions):
            operations = {operation for _, operation, _ in loop}
            if not any(map(PRODUCT.match, operations)) or SUM_OF_INTEGERS in operations:
                continue
            products += 1
            spilled = [f"{operation} {operands}" for _, operation, operands in loop if VECTOR_TO_STACK.search(operands)]
            assert not spilled, f"{function}: {spilled}"
    assert products > 0


@pytest.mark.parametrize("file", INTEGER_FILES)
def test_loops_over_integer_products_write_no_vector_at_all(objects, file):
    products = 0
    for function, instructions in read_functions(objects[file]).items():
        for loop in innermost_loops(instructions):
            if not any(INTEGER_PRODUCT.match(operation) for _, operation, _ in loop):
                continue
            products += 1
            written = [
                f"{operation} {operands}" for _, operation, operands in loop if VECTOR_TO_MEMORY.search(operands)
            ]
            assert not written, f"{function}: {written}"
    assert products > 0
