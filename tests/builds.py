"""Folders that tests build C++ in: kept from run to run, and shared, so that what did not change is compiled once."""

import fcntl
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
X86_64 = ROOT / ".build/wheel-x86_64"
"""Where `make wheel-x86_64` builds, too."""
AARCH64 = ROOT / ".build/wheel-aarch64"
SANITIZED = ROOT / ".build/sanitized"


@contextmanager
def locked(directory):
    """Keep other processes of a test run, which may build in the same folder, waiting."""
    directory.parent.mkdir(exist_ok=True)
    with directory.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
