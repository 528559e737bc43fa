"""`python from_source.py kernels.gpu.check [ARGUMENTS]`: a module of hebbline, run from this tree, not installed.

The root of the repository is the package `hebbline`, so its name is not that of a folder here; this gives it the name.
What the module imports must be installed; the C++ library need not be built where it is not used.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def register_package() -> None:
    """Make this tree importable as `hebbline`, and none of its folders as a top-level package."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "hebbline", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["hebbline"] = package
    spec.loader.exec_module(package)


def main() -> None:
    """Run the module that is named on the command line."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {Path(__file__).name} MODULE [ARGUMENTS], such as kernels.gpu.check")
    module = sys.argv.pop(1)
    register_package()
    runpy.run_module(f"hebbline.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
