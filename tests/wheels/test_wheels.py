"""The wheels: what is in them, what they ask of a machine, and that they do their work where there is no compiler.

`make wheels` builds what is looked at here. For this Python, dependencies come from the environment that the tests run
in; for others they are installed, where an interpreter of that version is there and a package index can be reached.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from builds import locked
from pack_models import dense, layer_model, node, sparse
from tiny import make_text

ROOT = Path(__file__).parents[2]
LIBRARIES = ("hebbline/kernels/libhebbline_kernels.so", "hebbline/train/native/libhebbline_train.so")
OTHER_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NEWEST_GLIBC, NEWEST_GCC = (2, 28), (7, 0, 0)
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
PROVIDED = {
    "libm.so.6",
    "libc.so.6",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="wheels are built on x86-64"),
    pytest.mark.skipif(None in map(shutil.which, ("make", "readelf")), reason="needs make and binutils"),
    pytest.mark.timeout(1800),
]


def build_wheel(architecture):
    """What `make wheels` does for an architecture; the wheel's path."""
    for old in ROOT.glob(f"dist/hebbline-*_{architecture}.whl"):
        old.unlink()
    virtual = Path(sys.prefix)
    command = ["make", f"VENV={virtual}", "--old-file", f"{virtual}/.installed", f"wheel-{architecture}"]
    with locked(ROOT / f".build/wheel-{architecture}"):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = ROOT.glob(f"dist/hebbline-*manylinux_2_28_{architecture}.whl")
    return wheel


@pytest.fixture(scope="module")
def x86_wheel():
    return build_wheel("x86_64")


@pytest.fixture(scope="module", params=MACHINES)
def wheel(request):
    """A wheel, and what ELF calls the machine of its architecture."""
    if request.param == "x86_64":
        return request.getfixturevalue("x86_wheel"), MACHINES["x86_64"]
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs aarch64-linux-gnu-g++: apt-get install g++-aarch64-linux-gnu")
    return build_wheel(request.param), MACHINES[request.param]


def read_elf(option, path):
    return subprocess.run(["readelf", "--wide", option, path], check=True, capture_output=True, text=True).stdout


def versions(text, name):
    return {tuple(map(int, found.split("."))) for found in re.findall(rf"\b{name}_(\d+(?:\.\d+)+)\b", text)}


def test_libraries_ask_for_no_more_than_the_tag_says(wheel, tmp_path):
    path, machine = wheel
    with zipfile.ZipFile(path) as archive:
        libraries = [archive.extract(name, tmp_path) for name in LIBRARIES]
    for library in libraries:
        assert machine in read_elf("-h", library)
        asked = read_elf("--version-info", library).split(".gnu.version_r")[-1]
        assert max(versions(asked, "GLIBC")) <= NEWEST_GLIBC
        assert max(versions(asked, "GCC"), default=(0,)) <= NEWEST_GCC
        assert "GLIBCXX" not in asked
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", read_elf("-d", library)))
        assert needed <= PROVIDED


def test_wheels_hold_the_package_and_no_sources(wheel):
    with zipfile.ZipFile(wheel[0]) as archive:
        names = archive.namelist()
    assert {"hebbline/cli.py", "hebbline/train/recipes/demo.yaml", *LIBRARIES} <= set(names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".inc", ".pyc"))]


class Environment:
    """A virtual environment whose commands find no compiler."""

    def __init__(self, directory, interpreter):
        subprocess.run([interpreter, "-m", "venv", directory], check=True)
        self.directory = Path(directory)

    def run(self, *command):
        environment = {"PATH": str(self.directory / "bin"), "HOME": str(self.directory), "LANG": "C.UTF-8"}
        assert shutil.which("gcc", path=environment["PATH"]) is None
        program = self.directory / "bin" / command[0]
        result = subprocess.run([program, *map(str, command[1:])], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def installed(x86_wheel, tmp_path_factory):
    """The x86-64 wheel in an environment of its own; dependencies are those of the tests."""
    environment = Environment(tmp_path_factory.mktemp("wheel") / "venv", sys.executable)
    (site,) = environment.directory.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    environment.run("pip", "install", "--quiet", "--no-deps", "--no-index", x86_wheel)
    return environment


@pytest.fixture
def foreign(tmp_path):
    """An ONNX file with a sparse layer."""
    nodes = [node("MatMul", ["X", "W"], ["Y"])]
    model = layer_model(
        nodes, np.where(sparse(256, 256) != 0, dense(256, 256), 0).astype(np.float32), ("n", 256), ("n", 256)
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    return path


def test_what_is_installed_is_the_wheel(installed):
    code = (
        "import hebbline.kernels, hebbline.train.native as n; print(hebbline.kernels.library_path(), n.library_path())"
    )
    paths = installed.run("python", "-c", code).split()
    assert len(paths) == 2 and all(str(installed.directory) in path for path in paths)


def test_export_and_eval(installed, tiny_model_directory, tmp_path):
    installed.run("hebbline", "export", tiny_model_directory, "--out", tmp_path / "artifact")
    assert (tmp_path / "artifact/model.hebbline.onnx").exists()
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(60)))
    options = ["--source", tmp_path / "text.txt", "--validation-share", "0.5", "--window", "16", "--max-windows", "4"]
    values = [
        json.loads(installed.run("hebbline", "eval", target, *options, "--json"))["value"]
        for target in (tiny_model_directory, tmp_path / "artifact")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_pack(installed, foreign, tmp_path):
    installed.run("hebbline", "pack", foreign, "--out", tmp_path / "packed")
    assert (tmp_path / "packed/model.onnx").exists()


def test_bench_linear(installed):
    shown = installed.run(
        "hebbline", "bench", "linear", "--shapes", "64x64", "--densities", "0.1", "--tokens", "1", "--json"
    )
    assert '"isa"' in shown


def other_interpreter(version):
    """An interpreter of that version: on the path, or kept by pyenv."""
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python3"))
    candidates = [*map(str, kept), shutil.which(f"python{version}")]
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(asked, capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip() == version:
            return candidate
    return None


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_other_pythons_pack_and_measure(x86_wheel, foreign, tmp_path, version):
    """With what these commands need: neither torch nor transformers."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("the tests above run on it")
    interpreter = other_interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version}")
    environment = Environment(tmp_path / "venv", interpreter)
    try:
        environment.run("pip", "install", "--quiet", x86_wheel, "onnx", "onnx-ir", "matplotlib")
    except AssertionError as error:
        if "Could not find a version" in str(error) or "connection" in str(error).lower():
            pytest.skip("dependencies cannot be had from a package index")
        raise
    environment.run("hebbline", "pack", foreign, "--out", tmp_path / "packed")
    environment.run("hebbline", "bench", "linear", "--shapes", "64x64", "--densities", "0.1", "--tokens", "1", "--json")
