"""Hot loops keep their sums in registers: seen in the machine code, since results are right either way.

A vector type wider than the registers, or sums that the compiler unrolls too late, go through the stack in every step,
which costs more than everything that vectors gain.
"""

import re

import pytest
from objects import compile_objects, innermost_loops, needs_native_tools, read_functions, sources

# Draws and rounding have no sums that a loop carries, and the sums of AMX lie in memory between tiles.
WITHOUT_SUMS = ("/draws/", "/bytes_")
FILES = [
    file
    for isa in ("avx2", "avx2vnni", "avx512", "avx512bf16")
    for file in sources(isa)
    if not any(part in file for part in WITHOUT_SUMS)
]

INTEGER_FILES = [
    f"kernels/linear/{kernels}_{isa}.cpp" for kernels in ("pick_narrow", "quad") for isa in ("avx2", "avx2vnni")
]

PRODUCT = re.compile(r"vfmadd|vpdp|vdpbf16|vpmadd")
ON_STACK = r"(-?0x[0-9a-f]+)?\(%rsp"
SUM_OF_INTEGERS = "vcvtdq2ps"
"""What a loop does that ends sums: it runs over groups of scales, not over products."""
INTEGER_PRODUCT = re.compile(r"vpmaddubsw|vpdpbusd")
VECTOR_TO_MEMORY = re.compile(r"%[xyz]mm\d+,(-?0x[0-9a-f]+)?\(")
VECTOR_TO_STACK = re.compile(r"%[xyz]mm\d+," + ON_STACK)
BROADCAST_FROM_STACK = re.compile(r"^v\w*broadcast\S* " + ON_STACK + r"|\{1to")
pytestmark = needs_native_tools


@pytest.fixture(scope="module")
def objects():
    return compile_objects(FILES)


@pytest.mark.parametrize("file", FILES)
def test_loops_over_products_write_no_vector_to_the_stack(objects, file):
    """Nor do they broadcast from there: a number that a loop multiplies by comes from where it lies, or a register."""
    products = 0
    for function, instructions in read_functions(objects[file]).items():
        for loop in innermost_loops(instructions):
            operations = {operation for _, operation, _ in loop}
            if not any(map(PRODUCT.match, operations)) or SUM_OF_INTEGERS in operations:
                continue
            products += 1
            lines = [f"{operation} {operands}" for _, operation, operands in loop]
            spilled = [line for line in lines if VECTOR_TO_STACK.search(line) or is_stack_broadcast(line)]
            assert not spilled, f"{function}: {spilled}"
    assert products > 0


def is_stack_broadcast(line):
    return "%rsp" in line and BROADCAST_FROM_STACK.search(line) is not None


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
