"""Everything of the GPU check that needs no GPU."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from engines.stand_in import HostDevice

from hebbline.artifacts import CheckError, InputError
from hebbline.commands import gpu_check
from hebbline.export.tensorrt import EngineOptions, build, export_engines
from hebbline.export.tensorrt.build import RUNTIMES, EngineBuild
from hebbline.export.tensorrt.sparsity import illegal_groups, layer_sparsity, parse_sparsity_log
from hebbline.export.tensorrt.typed_graph import save_typed_model
from hebbline.runtime.engines import Gpu, is_installed
from hebbline.runtime.gpu import find_gpu
from hebbline.runtime.static_cache import StepLimits

pytest.importorskip("triton", reason="the Triton language is not installed: pip install 'hebbline[gpu-build]'")

from hebbline.benchmarks.gpu_check import layers, run
from hebbline.benchmarks.gpu_check.layers import TensorRtLayer
from hebbline.benchmarks.gpu_check.page import EngineCheck, GpuCheck, render_page
from hebbline.kernels.gpu.check import cases, speed
from hebbline.kernels.gpu.check.cases import KernelParity, check_kernels, random_weight, timed_mask
from hebbline.kernels.gpu.check.speed import LayerTime, NotTimed
from hebbline.kernels.gpu.check.tables import page_name
from hebbline.kernels.gpu.check.timing import Timing, compare, copies_beyond_cache


def has_gpu():
    try:
        return find_gpu() is not None
    except InputError:
        return False


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_it_fails_in_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no NVIDIA GPU can be used here") as caught:
        gpu_check.main(["--docs", str(tmp_path)])
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def a_check(**changes):
    log = parse_sparsity_log("[I] (Sparsity) Found 1 layer(s) eligible to use sparse tactics: y\n"
                             "[I] (Sparsity) Chose 1 layer(s) using sparse tactics: y")  # fmt: skip
    two_four = layer_sparsity("layer", timed_mask("nm24", 0.5, (512, 512)), "y", log)
    values = {
        "gpu": "NVIDIA A100-SXM4-80GB",
        "compute_capability": "8.0",
        "versions": {"TensorRT": "11.4.0", "torch": "2.13.0"},
        "parity": (KernelParity("csr", "float16", 1, 2, 3, 0.25), KernelParity("csr", "bfloat16", 1, 2, 3, 0.5)),
        "engines": (EngineCheck("tensorrt", "11.4.0", "float16", 0.004, 0.006),),
        "times": (
            LayerTime("csr", "cuBLAS", 4096, 4096, 0.05, 1, Timing(3e-6, 18e-6, 5.9)),
            LayerTime("csr plugin", "TensorRT dense", 4096, 4096, 0.05, 1, Timing(4e-6, 20e-6, 5.0)),
        ),
        "left_out": (NotTimed("layers of 512x512", "the time was over"),),
        "tensorrt": (TensorRtLayer(64, 1e-4, Timing(1e-5, 1.5e-5, 1.5), two_four),),
        "failures": (),
    }
    return GpuCheck(**(values | changes))


def test_the_page_says_what_was_run_and_what_was_predicted():
    page = render_page(a_check())
    assert "Everything agreed." in page and "TensorRT 11.4.0, torch 2.13.0" in page
    assert "| kernels of `csr` against float64 | 0.50 of what rounding allows |" in page
    assert (
        "speed-up (run) | speed-up (predicted)" in page
        and "| csr | 4096x4096 | 0.05 | 1 | 3.0 | cuBLAS | 18.0 | 5.90 | 6." in page
    )
    assert "| 64 | 10.0 | 15.0 | 1.50 | yes | yes | 2:4 by structure; the builder timed a sparse tactic" in page
    assert "- layers of 512x512: the time was over" in page
    other = render_page(a_check(gpu="NVIDIA T4", failures=("kernel csr: error 2 of the allowed one",)))
    assert "no model of this GPU" in other and "**Not everything agreed:**\n- kernel csr" in other
    assert page_name("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb.md" and page_name("NVIDIA L4") == "l4.md"


def test_a_mismatch_ends_with_exit_code_1(monkeypatch, tmp_path):
    monkeypatch.setattr("hebbline.runtime.gpu.find_gpu", lambda: Gpu("NVIDIA A100", "8.0"))
    found = [a_check(), a_check(failures=("kernel csr is wrong",))]
    monkeypatch.setattr(run, "run_gpu_check", lambda model, docs, progress: (found.pop(0), docs / "a.md"))
    assert gpu_check.main(["--docs", str(tmp_path)]) == 0
    with pytest.raises(CheckError, match="1 mismatches on NVIDIA A100-SXM4-80GB, the first: kernel csr is wrong") as e:
        gpu_check.main(["--docs", str(tmp_path)])
    assert e.value.exit_code == 1


def test_conditions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(run, "find_gpu", lambda: Gpu("NVIDIA H100", "9.0"))
    monkeypatch.setattr(build, "is_installed", lambda module: module == "tensorrt_rtx")
    monkeypatch.setattr(run, "is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"no runtime for NVIDIA H100 \(9\.0\) is installed"):
        run.check_conditions()
    monkeypatch.setattr(run, "find_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    with pytest.raises(InputError, match="the Triton language is not installed"):
        run.check_conditions()


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_a_torch_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(run, "find_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    monkeypatch.setattr(build, "is_installed", lambda module: True)
    monkeypatch.setattr(run, "is_installed", lambda module: True)
    with pytest.raises(InputError, match="cannot use the GPU: install a build with CUDA"):
        run.check_conditions()


def test_a_runtime_that_fails_is_a_mismatch_and_the_others_go_on():
    mismatches = []

    def check(runtime):
        if runtime.name == "tensorrt":
            raise CheckError("logits differ")
        return [runtime.name]

    assert run._collect(list(run.RUNTIMES.values()), mismatches, check) == ["tensorrt-rtx"]
    assert mismatches == ["TensorRT: logits differ"]


def test_the_kernel_comparison_runs_and_sees_a_wrong_kernel(monkeypatch):
    found = list(check_kernels("cpu", shapes=[(1, 1, 1), (2, 9, 33)]))
    assert len(found) == 2 * 2 * 6 and all(entry.passed for entry in found)
    from hebbline.kernels.gpu import ops

    right = ops.linear
    monkeypatch.setattr(ops, "linear", lambda x, weight, tensors: right(x, weight, tensors) * 1.05)
    assert not any(entry.passed for entry in check_kernels("cpu", shapes=[(2, 9, 33)]))
    monkeypatch.setattr(ops, "linear", lambda x, weight, tensors: right(x, weight, tensors) * float("nan"))
    assert not any(entry.passed for entry in check_kernels("cpu", shapes=[(2, 9, 33)]))


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_masks_suit_the_form_that_is_timed(density):
    shape = (256, 512)
    for form in ("gap", "bitmask", "csr", "block", "nm24"):
        mask = timed_mask(form, density, shape)
        assert mask.shape == shape and mask.mean() == pytest.approx(density, abs=0.06)
    assert illegal_groups(timed_mask("nm24", density, shape))[1] == 0
    blocks = timed_mask("block", density, shape).reshape(8, 32, 16, 32).mean(axis=(1, 3))
    assert set(np.unique(blocks)) == {0.0, 1.0}


class Scripted:
    def __init__(self, launches, seconds):
        self.launches, self._seconds = launches, list(seconds)

    def seconds(self):
        return self._seconds.pop(0)


def test_times_are_medians_and_ratios_are_of_the_same_turn():
    baseline = Scripted(2, [100, 8, 16, 4, 8, 8])
    candidate = Scripted(4, [100, 8, 16, 4, 8, 80])
    assert compare(baseline, candidate, rounds=5) == Timing(2.0, 4.0, 2.0)


def test_copies_exceed_the_cache():
    assert copies_beyond_cache(32 << 20, 40 << 20) == 4 and copies_beyond_cache(1 << 30, 40 << 20) == 2


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="pip install 'hebbline[gpu-build]'")
def test_the_small_model_is_two_four_and_becomes_an_engine(tmp_path):
    model = run.small_model(tmp_path / "model")
    _, report = export_engines(model, tmp_path / "out", EngineOptions(limits=StepLimits(4, 64)))
    projections = [layer for layer in report.layers if layer.name.endswith("proj")]
    assert len(projections) == 14 and all(layer.two_four for layer in projections)
    assert {layer.name for layer in projections} <= set(report.unchanged)
    assert all("does not report sparse tactics" in layer.reason for layer in projections)


def inline(request):
    """In place of TensorRT's builder: the stand-in's engine is the ONNX file, weights and all."""
    assert request.plugins and request.compute_capabilities == ("8.0",)
    request.engine.write_bytes(onnx.load(request.onnx).SerializeToString())
    return EngineBuild("11.4.0", 1, 0.1, "")


def test_the_engine_of_plugins_is_compared_with_torch(monkeypatch, tiny_model_directory):
    """The steps of the check, with the nodes' functions in place of the plugins; a wrong engine is a mismatch."""
    monkeypatch.setattr(run, "build_engine", inline)
    runtime = replace(RUNTIMES["tensorrt"], module="engines.stand_in")
    gpu, quiet = Gpu("NVIDIA A100", "8.0"), lambda stage: None
    found = run.check_plugins(runtime, gpu, HostDevice(), tiny_model_directory, quiet)
    assert 0 < found.engine <= 4 * found.torch and found.runtime == "tensorrt, all projections plugins,"

    def wrong(request):
        model = onnx.load(request.onnx)
        tensor = next(t for t in model.graph.initializer if t.name.endswith("down_proj.values"))
        tensor.CopyFrom(onnx.numpy_helper.from_array(3 * onnx.numpy_helper.to_array(tensor), tensor.name))
        onnx.save_model(model, request.onnx)
        return inline(request)

    monkeypatch.setattr(run, "build_engine", wrong)
    with pytest.raises(CheckError, match="the engine of plugins in float16 is"):
        run.check_plugins(runtime, gpu, HostDevice(), tiny_model_directory, quiet)


@pytest.mark.parametrize("form", ["dense", "gap", "bitmask", "csr", "block", "nm24"])
def test_the_timed_graphs_compute_the_layer(form, tmp_path):
    mask = timed_mask("nm24", 0.3, (64, 96))
    weight = random_weight(np.random.default_rng(0), mask, "float16").astype(np.float16)
    save_typed_model(layers._layer_graph(form, weight, mask, tokens=5), tmp_path / "layer.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float16)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    allowed = layers._PARITY_FACTOR * (np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T)
    assert (np.abs(session.run(None, {"x": x})[0] - expected) <= allowed).all()


def test_the_whole_check_collects_what_fails_and_writes_the_page(monkeypatch, tmp_path):
    """Kernels are compared in the interpreter; an engine that differs and a driver that is not there are replaced."""
    runtime = RUNTIMES["tensorrt"]

    def differs(*arguments):
        raise CheckError("logits differ by 3")

    monkeypatch.setattr(run, "check_conditions", lambda: (Gpu("NVIDIA L4", "8.9"), [runtime]))
    monkeypatch.setattr(run.Driver, "open", classmethod(lambda cls: HostDevice()))
    monkeypatch.setattr(cases, "check_kernels", lambda device: check_kernels("cpu", shapes=[(2, 9, 33)]))
    monkeypatch.setattr(run, "_check_engine", lambda *arguments: a_check().engines[0])
    monkeypatch.setattr(run, "check_plugins", differs)
    monkeypatch.setattr(speed, "time_kernels", lambda sweep, clock: [*a_check().times[:1], *a_check().left_out])
    monkeypatch.setattr(layers, "time_tensorrt", lambda *arguments: a_check().tensorrt)
    monkeypatch.setattr(layers, "time_plugins", lambda *arguments: a_check().times[1:])
    monkeypatch.setattr(run, "_versions", lambda runtimes: {"TensorRT": "11.4.0"})
    check, page = run.run_gpu_check(None, tmp_path / "docs")
    assert check.mismatches == ("TensorRT: logits differ by 3",) and len(check.parity) == 12
    assert [row.what for row in check.times] == ["csr", "csr plugin"] and len(check.engines) == 1
    text = page.read_text()
    assert page.name == "l4.md" and "- TensorRT: logits differ by 3" in text and text == render_page(check)
