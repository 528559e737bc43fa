"""Running code on a stranger's model in a process of its own: what a file can crash or exhaust is that process only."""

import subprocess
import sys
from pathlib import Path

SECONDS = 1800
"""The longest that such a process may take."""


def run_isolated(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this package, and wait for it; raises subprocess.TimeoutExpired after `SECONDS`."""
    # With the packages of this process and nothing else: neither the working directory nor the script's own.
    packages = [path for path in sys.path if path]
    start = f"import runpy, sys; sys.path[:] = {packages!r}; runpy.run_path({str(script)!r}, run_name='__main__')"
    command = [sys.executable, "-I", "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
