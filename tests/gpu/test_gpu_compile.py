"""The same kernels compiled for three GPU generations, with no GPU, by the real compiler and assembler."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import hebbline
from hebbline.artifacts import InputError
from hebbline.kernels.gpu.driver import CudaUnavailableError, Driver
from hebbline.runtime.gpu import find_gpu

PHASES = dict.fromkeys(("bitmask", "csr", "block", "nm24"), ("decode", "prefill"))
PHASES |= dict.fromkeys(("gap", "gap8"), ("decode", "decode2", "decode4", "decode8", "prefill", "prefill128"))
# A hundred compilations, one after the other.
pytestmark = pytest.mark.timeout(600)
KERNELS = {f"{form}_{phase}" for form, phases in PHASES.items() for phase in phases}


def compile_in_a_process(*arguments):
    """Without the interpreter, which this process has chosen."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hebbline.kernels.gpu.compile", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The folder of the cubins, and the figures of each."""
    folder = tmp_path_factory.mktemp("cubins")
    done = compile_in_a_process("--json", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_every_kernel_becomes_a_cubin_for_every_architecture_and_spills_nothing(compiled):
    folder, figures = compiled
    assert {(f["name"], f["architecture"], f["value_type"]) for f in figures} == {
        (name, architecture, values)
        for name in KERNELS
        for architecture in (80, 90, 120)
        for values in ("float16", "bfloat16")
    }
    assert {f["target"] for f in figures} == {"sm_80", "sm_90a", "sm_120a"}
    for kernel in figures:
        assert kernel["spilled_bytes"] == 0 and 16 <= kernel["registers"] <= 255, kernel
        # More than 48 KiB must be asked for, which a launch by Triton does, and one of a plugin, of sm_80, does not.
        assert kernel["shared_bytes"] <= (48 if kernel["architecture"] == 80 else 99) * 1024, kernel
    files = list(folder.iterdir())
    assert len(files) == len(figures) and all(file.read_bytes()[:4] == b"\x7fELF" for file in files)


@pytest.mark.skipif(version("triton") != "3.7.1", reason="the documented figures are of Triton 3.7.1")
def test_the_documented_registers_spills_and_shared_memory_are_those_of_the_compiler(compiled):
    page = (Path(hebbline.__file__).parent / "docs/gpu/README.md").read_text()
    columns = ("name", "value_type", "target", "warps", "registers", "spilled_bytes", "shared_bytes")
    by_type = {}
    for kernel in compiled[1]:
        by_type.setdefault(kernel["value_type"], []).append(kernel)
    for single, brain in zip(by_type["float16"], by_type["bfloat16"], strict=True):
        assert f"| {' | '.join(str(single[column]) for column in columns)} |" in page
        assert single["name"] == brain["name"] and abs(single["registers"] - brain["registers"]) <= 3
        assert single["shared_bytes"] == brain["shared_bytes"]


def test_the_interpreter_does_not_pretend_to_compile():
    compiling = pytest.importorskip("hebbline.kernels.gpu.compile")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compiling.compile_kernel("csr", "decode", "float16", 80)


def test_kernels_stay_importable_as_a_top_level_package(tmp_path):
    """In the root of a checkout transformers finds a package `kernels`: importing it must import nothing of ours."""
    root = str(Path(hebbline.__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {root!r}); import kernels; "
        "assert kernels.__name__ == 'kernels', kernels; "
        "assert not [name for name in sys.modules if name.startswith('hebbline') and 'editable' not in name]; "
        "assert 'triton' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def has_driver():
    try:
        Driver.open()
    except CudaUnavailableError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA GPU")
def test_without_a_driver_the_message_says_so():
    with pytest.raises(InputError, match=r"no NVIDIA GPU can be used here: the NVIDIA driver's libcuda\.so\.1"):
        find_gpu()
