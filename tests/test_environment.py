"""Environment variables that the code reads are in the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("**/*.py", "**/*.cpp", "**/*.h", "**/*.inc")
READ = re.compile(r"\"(HEBBLINE_[A-Z_]+)\"")
# CMake's options and macros have such names too; only quoted names are read at run time.


def read_variables():
    found = {}
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            parts = path.relative_to(ROOT).parts
            if parts[0] in ("tests", "build") or parts[0].startswith("."):
                continue
            for name in READ.findall(path.read_text()):
                found.setdefault(name, path)
    return found


def test_every_variable_is_documented_and_every_documented_one_is_read():
    table = (ROOT / "docs/architecture.md").read_text().split("## Environment variables")[1]
    documented = set(re.findall(r"`(HEBBLINE_[A-Z_]+)`", table))
    read = read_variables()
    assert {"HEBBLINE_ISA", "HEBBLINE_FAMILY", "HEBBLINE_KERNELS"} <= set(read)
    assert set(read) == documented, {name: str(read[name]) for name in set(read) - documented}
