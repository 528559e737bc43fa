"""Hot loops keep their sums in registers: seen in the machine code, since results are right either way.

A vector type wider than the registers, or sums that the compiler unrolls too late, go through the stack in every step,
which costs more than everything that vectors gain.
"""

import re
import subprocess

import pytest
from objects import compile_objects, needs_native_tools, sources

# Draws have no sums that a loop carries; in AMX's, sums lie in memory between tiles.
FILES = [file for isa in ("avx2", "avx512", "avx512bf16") for file in sources(isa) if "/draws/" not in file]

INTEGER_FILES = ["kernels/linear/pick_narrow_avx2.cpp", "kernels/linear/quad_avx2.cpp"]

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")
PRODUCT = re.compile(r"vfmadd|vpdp|vdpbf16|vpmadd")
ON_STACK = r"(-?0x[0-9a-f]+)?\(%rsp"
INTEGER_PRODUCT = re.compile(r"vpmaddubsw|vpdpbusd")
VECTOR_TO_MEMORY = re.compile(r"%[xyz]mm\d+,(-?0x[0-9a-f]+)?\(")
VECTOR_TO_STACK = re.compile(r"%[xyz]mm\d+," + ON_STACK)
BROADCAST_FROM_STACK = re.compile(r"^v\w*broadcast\S* " + ON_STACK + r"|\{1to")

pytestmark = needs_native_tools


@pytest.fixture(scope="module")
def objects():
    return compile_objects(FILES)


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
def test_loops_over_products_write_no_vector_to_the_stack(objects, file):
    """Nor do they broadcast from there: a number that a loop multiplies by comes from where it lies, or a register."""
    products = 0
    for function, instructions in read_functions(objects[file]).items():
        for loop in innermost_loops(instructions):
            if not any(PRODUCT.match(operation) for _, operation, _ in loop):
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
