"""The check with torch, Triton and NumPy alone: what it imports, its steps on the CPU, its page and its exit codes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hebbline
from hebbline.commands import gpu_check
from hebbline.runtime.engines import Gpu

pytest.importorskip("triton", reason="the Triton language is not installed: pip install 'hebbline[gpu-build]'")

from hebbline.kernels.gpu.check import run, speed
from hebbline.kernels.gpu.check.__main__ import main
from hebbline.kernels.gpu.check.cases import KernelParity, check_kernels
from hebbline.kernels.gpu.check.run import NO_TENSORRT, GpuUnavailableError
from hebbline.kernels.gpu.check.speed import SHAPES, Clock, LayerTime, NotTimed, Sweep, time_kernels
from hebbline.kernels.gpu.check.tables import KernelCheck, render
from hebbline.kernels.gpu.check.timing import Timing

ROOT = Path(hebbline.__file__).parent
# Everything else that hebbline works with is hidden.
ONLY = """
import sys
from importlib.machinery import PathFinder
sys.path.insert(0, {root!r})
import from_source
HIDDEN = {{"accelerate", "datasets", "grpc", "jsonargparse", "matplotlib", "ml_dtypes", "onnx", "onnxruntime", "rich",
          "safetensors", "tensorrt", "tensorrt_rtx", "tokenizers", "transformers", "tritonclient", "yaml"}}
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in HIDDEN else find(name, path, target)
)
from_source.register_package()
"""


def run_alone(code, **environment):
    """In a process that finds nothing but torch, Triton and NumPy, and hebbline's sources."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, "-c", ONLY.format(root=str(ROOT)) + code]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)


def test_kernels_are_compared_where_nothing_but_torch_and_triton_is():
    code = (
        "from hebbline.kernels.gpu.check.cases import check_kernels\n"
        "found = list(check_kernels('cpu', [(3, 9, 33)]))\n"
        "assert len(found) == 12 and all(entry.passed for entry in found), found\n"
        "print(sys.modules['hebbline'].__file__)"
    )
    done = run_alone(code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT.resolve() / "__init__.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_from_a_source_tree_without_a_gpu_it_ends_with_2_and_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "from_source.py"), "kernels.gpu.check", "--docs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("torch 2") and done.stderr.count("\n") == 1
    assert "sees no NVIDIA GPU: install a build with CUDA" in done.stderr and not list(tmp_path.iterdir())
    usage = subprocess.run([sys.executable, str(ROOT / "from_source.py")], capture_output=True, text=True, timeout=20)
    assert usage.returncode == 1 and usage.stderr.startswith("usage: python from_source.py MODULE")


class HostReplay:
    """Launches timed on the host, as the CPU has no graphs."""

    def __init__(self, launches):
        self.launches, self._all = len(launches), launches
        assert all(torch.isfinite(launch()).all() for launch in launches)

    def seconds(self):
        start = time.perf_counter()
        for launch in self._all:
            launch()
        return time.perf_counter() - start


@pytest.fixture
def on_the_host(monkeypatch):
    monkeypatch.setattr(speed, "GraphReplay", HostReplay)
    monkeypatch.setattr(speed, "copies_beyond_cache", lambda size: 2)
    monkeypatch.setattr(speed, "compare", lambda base, other: speed_of(base, other))


def speed_of(base, other):
    seconds = other.seconds() / other.launches, base.seconds() / base.launches
    return Timing(*seconds, seconds[1] / seconds[0])


def test_every_form_is_timed_at_each_shape_and_what_fails_is_said(on_the_host):
    """In the interpreter; torch has its 2:4 tensors on a GPU only, which is a line of its own and stops nothing."""
    sweep = Sweep(shapes=[(20, 33)], densities=(0.3,), tokens=(1, 3), device="cpu")
    rows = list(time_kernels(sweep, Clock(100)))
    timed = [row for row in rows if isinstance(row, LayerTime)]
    forms = ("bitmask", "csr", "block", "nm24", "gap", "gap8")
    assert [(row.what, row.tokens) for row in timed] == [(form, tokens) for form in forms for tokens in (1, 3)]
    assert all(row.timing.seconds > 0 and (row.out_features, row.in_features) == (20, 33) for row in timed)
    (failed,) = (row for row in rows if isinstance(row, NotTimed))
    assert failed.what == "2:4 by torch at 0.5 on 20x33" and failed.why


def test_what_the_time_does_not_reach_is_named(on_the_host, monkeypatch):
    (left,) = time_kernels(Sweep(shapes=[(8, 8), (4, 8)], device="cpu"), Clock(0))
    assert left == NotTimed("layers of 8x8, 4x8", "the time was over")
    seen = iter([False, False, True])
    monkeypatch.setattr(Clock, "is_over", property(lambda clock: next(seen, True)))
    sweep = Sweep(shapes=[(8, 8)], densities=(0.3,), tokens=(1,), two_four=False, device="cpu")
    first, rest = time_kernels(sweep, Clock(1))
    assert first.what == "bitmask"
    assert rest.what == "8x8: csr at 0.3, block at 0.3, nm24 at 0.3, gap at 0.3, gap8 at 0.3"


def test_the_shapes_are_those_of_the_papers_models():
    for hidden, inner in ((512, 1376), (768, 2048), (2048, 5461)):
        assert {(hidden, hidden), (hidden, inner), (inner, hidden)} <= set(SHAPES)


def a_check(**changes):
    values = {
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "versions": {"Python": "3.12.3", "torch": "2.11.0"},
        "parity": (KernelParity("gap", "float16", 1, 2, 3, 0.25),),
        "times": (
            LayerTime("gap", "cuBLAS", 4096, 4096, 0.3, 1, Timing(4e-6, 10e-6, 2.5)),
            LayerTime("2:4 by torch", "cuBLAS", 4096, 4096, 0.5, 8, Timing(8e-6, 10e-6, 1.25)),
        ),
        "left_out": (NotTimed("2:4 by torch at 0.5 on 2048x5461", "RuntimeError: no multiple of 16"),),
    }
    return KernelCheck(**(values | changes))


def test_the_page_says_what_ran_what_was_predicted_and_what_was_left_out():
    page = render(a_check(), NO_TENSORRT)
    assert page.startswith("# NVIDIA H200\n") and "TensorRT was not there: no engine and no plugin was run" in page
    assert "| gap | 4096x4096 | 0.3 | 1 | 4.0 | cuBLAS | 10.0 | 2.50 | 2.6" in page
    assert "| 2:4 by torch | 4096x4096 | 0.5 | 8 | 8.0 | cuBLAS | 10.0 | 1.25 | no model |" in page
    assert "- 2:4 by torch at 0.5 on 2048x5461: RuntimeError: no multiple of 16" in page
    assert "Everything agreed." in page
    wrong = a_check(parity=(KernelParity("gap", "float16", 1, 2, 3, float("inf"), "CompilationError: no gcc"),))
    assert "- kernel gap in float16 on 1x2x3: CompilationError: no gcc" in render(wrong)
    assert render(a_check(left_out=())).rstrip().endswith("Nothing.")


def test_a_kernel_that_does_not_compile_is_a_mismatch_and_the_others_go_on(monkeypatch):
    from hebbline.kernels.gpu import ops

    right = ops.linear

    def broken(x, weight, tensors):
        if weight.form == "csr":
            raise RuntimeError("ptxas fatal\nmore")
        return right(x, weight, tensors)

    monkeypatch.setattr(ops, "linear", broken)
    found = list(check_kernels("cpu", [(1, 5, 9)]))
    assert [entry.form for entry in found if not entry.passed] == ["csr", "csr"]
    assert {entry.failure for entry in found} == {"", "RuntimeError: ptxas fatal"}


def test_the_whole_check_on_the_host_writes_the_page(on_the_host, monkeypatch, tmp_path, capsys):
    """Its own steps, with small shapes, in the interpreter; a GPU's name and generation are given."""
    monkeypatch.setattr(run, "check_conditions", lambda: None)
    monkeypatch.setattr(run, "PARITY_SHAPES", [(1, 5, 9)])
    monkeypatch.setattr(run, "check_kernels", lambda device, shapes: check_kernels("cpu", shapes))
    small = Sweep(shapes=[(8, 16)], densities=(0.3,), tokens=(1,), two_four=False, device="cpu")
    monkeypatch.setattr(run, "Sweep", lambda: small)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert main(["--docs", str(tmp_path / "docs")]) == 0
    said = capsys.readouterr().out
    assert "gap8 in bfloat16 on 1x5x9: " in said and "gap on 8x16 at 0." in said
    page = (tmp_path / "docs/h200.md").read_text()
    assert page.count("\n| gap | 8x16 |") == 1 and [file.name for file in (tmp_path / "docs").iterdir()] == ["h200.md"]


def test_the_command_without_tensorrt_checks_the_kernels(monkeypatch, tmp_path, capsys):
    from hebbline.artifacts import CheckError, InputError
    from hebbline.export.tensorrt import build

    monkeypatch.setattr("hebbline.runtime.gpu.find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    monkeypatch.setattr(build, "is_installed", lambda module: False)
    found = [a_check(), a_check(parity=(KernelParity("gap", "float16", 1, 2, 3, 2.0),))]
    monkeypatch.setattr(run, "run_kernel_check", lambda docs, progress: (found.pop(0), docs / "h200.md"))
    assert gpu_check.main(["--docs", str(tmp_path)]) == 0
    with pytest.raises(CheckError, match="1 mismatches on NVIDIA H200, the first: kernel gap in float16 on 1x2x3"):
        gpu_check.main(["--docs", str(tmp_path)])

    def unavailable(docs, progress):
        raise GpuUnavailableError("torch sees no GPU")

    monkeypatch.setattr(run, "run_kernel_check", unavailable)
    with pytest.raises(InputError, match="torch sees no GPU"):
        gpu_check.main(["--docs", str(tmp_path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_conditions_are_told_in_one_line():
    with pytest.raises(GpuUnavailableError, match="sees no NVIDIA GPU: install a build with CUDA"):
        run.check_conditions()
