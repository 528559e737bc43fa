"""How the package is cut: a folder imports from those below it only, and no name hides a module."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import hebbline

ROOT = Path(hebbline.__file__).parent
ROOMS = {
    "commands": 10,
    "studies": 9,
    "benchmarks": 8,
    "evaluate": 7,
    "export": 6,
    "serve": 6,
    "train": 6,
    "data": 5,
    "runtime": 5,
    "kernels": 4,
    "architectures": 4,
    "artifacts": 3,
}
"""The level of each folder: `docs/architecture.md` has them in the same order."""


def imported_modules(path, root=ROOT, tree=None):
    """What a file imports relatively, wherever it stands in the file: dotted names below the package, and the lines."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield (
                    (f"{target}.{alias.name}".strip(".") if is_module(root, target, alias.name) else target),
                    node.lineno,
                )


def is_module(root, package, name):
    place = root.joinpath(*package.split("."), name)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports_upwards(room, root=ROOT):
    return [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in sorted((root / room).rglob("*.py"))
        for module, line in imported_modules(path, root)
        if (other := module.split(".")[0]) in ROOMS and other != room and ROOMS[other] >= ROOMS[room]
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_imports_from_those_below_it_only(room):
    assert not imports_upwards(room)


def test_every_folder_has_a_level():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(ROOMS)


def test_an_import_upwards_is_seen(tmp_path):
    for room, text in {"export": "def run():\n    from ..serve import client\n", "serve": ""}.items():
        (tmp_path / room).mkdir()
        (tmp_path / room / "gate.py").write_text(text)
    (tmp_path / "serve/client.py").touch()
    assert imports_upwards("export", tmp_path) == ["export/gate.py:2 imports serve.client"]


def what_runs(path):
    """The syntax tree of a file without what only type checkers read."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def circles():
    """Files that import each other in a circle, by any import that runs."""
    graph = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if not name.endswith("__init__"):
                graph[name] = {module for module, _ in imported_modules(path, tree=what_runs(path))}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    return graph


def test_no_files_import_each_other_in_a_circle():
    assert not circles()


def packages():
    for found in pkgutil.walk_packages([str(ROOT)], "hebbline."):
        top = found.name.split(".")[1]
        if found.ispkg and top in ROOMS and found.name != "hebbline.kernels.gpu.check":
            yield found.name


@pytest.mark.parametrize("name", packages())
def test_no_name_of_a_package_hides_its_module(name):
    package = importlib.import_module(name)
    directory = Path(package.__file__).parent
    inside = {path.stem for path in directory.glob("*.py")} | {path.parent.name for path in directory.glob("*/*.py")}
    offered = set(getattr(package, "__all__", ()))
    assert not offered & inside
