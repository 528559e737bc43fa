"""No function that is compiled for an instruction set can serve a processor without it.

The linker keeps one copy of what several files define with vague linkage, inline functions and instances of templates:
it may keep the one that a file for a wider instruction set brought along.
"""

import subprocess

import pytest
from objects import compile_objects, instruction_sets, needs_native_tools, sources

FILES = [file for suffix in instruction_sets("x86_64") for file in sources(suffix)]
VAGUE = "WVuvw"  # the letters of nm

pytestmark = needs_native_tools


def defined_symbols(path):
    listing = subprocess.run(["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    return [line.split(maxsplit=2)[1:] for line in listing.splitlines()]


@pytest.fixture(scope="module")
def objects():
    return compile_objects(FILES)


@pytest.mark.parametrize("file", FILES)
def test_no_symbol_of_an_instruction_set_is_shared(objects, file):
    symbols = defined_symbols(objects[file])
    assert symbols
    assert [name for kind, name in symbols if kind in VAGUE] == []


@pytest.mark.parametrize("file", FILES)
def test_what_others_see_is_in_the_namespace_of_the_instruction_set(objects, file):
    space = file.rsplit("_", 1)[1].removesuffix(".cpp")
    seen = [name for kind, name in defined_symbols(objects[file]) if kind.isupper()]
    assert seen
    assert [name for name in seen if not name.startswith(f"hebbline::{space}::")] == []
