"""The object files of the native libraries, compiled as they are for users, and what is in them."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / ".build/release"

needs_native_tools = pytest.mark.skipif(
    platform.machine() != "x86_64"
    or None in (shutil.which("cmake"), shutil.which("ninja"), shutil.which("objdump"), shutil.which("nm")),
    reason="needs cmake, ninja and binutils, on x86-64",
)


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
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja"], check=True, stdout=subprocess.DEVNULL)
    paths = {file: f"CMakeFiles/{library_of(file)}.dir/{file}.o" for file in files}
    subprocess.run(["ninja", "-C", BUILD, *paths.values()], check=True, stdout=subprocess.DEVNULL)
    return {file: BUILD / path for file, path in paths.items()}


def library_of(file):
    """The target that a source file belongs to."""
    return "hebbline_train" if file.startswith("train/") else "hebbline_kernels"
