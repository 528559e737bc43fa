"""The object files of the native libraries, compiled as they are for users, and what is in them."""

import platform
import re
import shutil
import subprocess

import pytest
from builds import ROOT, X86_64, locked

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(?:\{vex\} )?\s*(\S+)\s*(.*)")
JUMP = re.compile(r"j|b\.|b$|cbn?z|tbn?z")  # of x86-64 and of AArch64
TARGET = re.compile(r"\b([0-9a-f]+) <")

needs_native_tools = [
    pytest.mark.skipif(
        platform.machine() != "x86_64"
        or None in (shutil.which("cmake"), shutil.which("ninja"), shutil.which("objdump"), shutil.which("nm")),
        reason="needs cmake, ninja and binutils, on x86-64",
    ),
    pytest.mark.timeout(1800),  # the first to ask waits for the compiler
]


def instruction_sets(architecture):
    """The endings of the files of an architecture's instruction sets, from CMake's table."""
    rows = (line.split("(")[1] for line in read_table() if line.startswith("hebbline_instruction_set("))
    return [row.split()[0] for row in rows if row.split()[1] == architecture]


def read_table():
    """The lines of CMake's table of instruction sets."""
    return (ROOT / "cmake/instruction_sets.cmake").read_text().splitlines()


def sources(suffix):
    """The source files of an instruction set, as paths in the repository."""
    found = [*ROOT.glob(f"kernels/*/*_{suffix}.cpp"), *ROOT.glob(f"train/native/*/*_{suffix}.cpp")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def compile_objects(files):
    """Compiles source files as the libraries do; the object file of each."""
    paths = {file: f"CMakeFiles/{library_of(file)}.dir/{file}.o" for file in files}
    with locked(X86_64):
        subprocess.run(["cmake", "-S", ROOT, "-B", X86_64, "-G", "Ninja"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["ninja", "-C", X86_64, *paths.values()], check=True, stdout=subprocess.DEVNULL)
    return {file: X86_64 / path for file, path in paths.items()}


def library_of(file):
    """The target that a source file belongs to."""
    return "hebbline_train" if file.startswith("train/") else "hebbline_kernels"


def read_functions(path, objdump="objdump"):
    """The instructions (address, operation, operands) of each function of an object file."""
    listing = subprocess.run([objdump, "-dC", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
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
        target = TARGET.search(operands)
        if JUMP.match(operation) and target and index.get(int(target[1], 16), number + 1) <= number:
            loops.append((index[int(target[1], 16)], number))
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            yield instructions[first : last + 1]
