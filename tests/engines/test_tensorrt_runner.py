"""Which engine a machine runs, the fallback, and the runner's calls, seen by a stand-in for TensorRT."""

import json
import logging
import queue
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from engines import stand_in

from hebbline.artifacts import CheckError, DamagedArtifactError, read_manifest
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.export.tensorrt.typed_graph import PRECISIONS
from hebbline.export.verify import check_parity, torch_greedy
from hebbline.kernels.gpu.driver import CudaUnavailableError, Driver
from hebbline.runtime.engines import ENGINES_FILE, EngineFacts, Gpu, choose_engine, read_engines
from hebbline.runtime.onnxruntime import OnnxRunner
from hebbline.runtime.static_cache import StaticCacheRunner, StepLimits
from hebbline.runtime.tensorrt import EngineExecutor, installed_runtimes, open_runner
from hebbline.serve.generation import GenerationRequest
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.scheduler import Scheduler

ENGINE = EngineFacts("a.engine", "tensorrt-rtx", "1.7.1", ("8.0", "8.6"), "float16", StepLimits(4, 16))
L4 = Gpu("NVIDIA L4", "8.9")


def make_runner(source, precision, device=None):
    """Three slots in steps of at most 2 slots or 24 tokens."""
    limits = StepLimits(batch=2, tokens=24)
    facts = source.facts()
    engine = build_static_decoder(source, PRECISIONS[precision]).SerializeToString()
    description = replace(ENGINE, precision=precision, limits=limits)
    device = device or stand_in.HostDevice()
    return StaticCacheRunner(facts, 3, limits, EngineExecutor(stand_in, engine, description, facts, 3, device))


def test_addresses_shapes_and_order_of_calls_pass_the_parity_gate(source):
    """Chunks, single steps, ragged batches over slots at an offset, 64 greedy tokens: all through addresses."""
    parity = check_parity(source.model, make_runner(source, "float32"), lambda stage: None)
    assert parity.greedy_tokens == 64


def test_a_cache_of_16_bits_lies_where_the_engine_looks(source):
    runner, reference = make_runner(source, "float16"), make_runner(source, "float32")
    prompt = [5, 9, 200, 3, 17, 8, 30]
    for each in (runner, reference):
        each.prefill(2, prompt, 0, [])
        each.prefill(1, prompt[:3], 0, [])
    found, expected = (each.decode(1, [7, 11], [3, 7]).copy() for each in (runner, reference))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


def test_the_scheduler_serves_several_requests_over_it(source, tokenizer):
    """Prompts in chunks beside decoding slots, in the scheduler's own thread; each request gets torch's tokens."""
    backend = tokenizer.backend_tokenizer
    scheduler = Scheduler(make_runner(source, "float32"), backend, (), max_waiting=8)
    prompts = [[5, 9, 200], list(range(10, 50)), [7, 3, 1, 250, 8]]
    queues = [queue.Queue() for _ in prompts]
    for prompt, events in zip(prompts, queues, strict=True):
        scheduler.submit(GenerationRequest(tuple(prompt), SamplingParameters(max_tokens=6)), events.put)
    try:
        for prompt, events in zip(prompts, queues, strict=True):
            tokens = []
            while len(tokens) < 6:
                tokens += events.get(timeout=30).token_ids
            assert tokens == torch_greedy(source.model, prompt, 6)[0]
    finally:
        scheduler.close()


def test_a_step_in_another_thread_takes_the_context_there(source):
    device = stand_in.HostDevice()
    runner = make_runner(source, "float32", device=device)
    thread = threading.Thread(target=lambda: [runner.prefill(0, [1, 2], 0, [1]), runner.decode(0, [3], [2])])
    thread.start()
    thread.join()
    assert len(device.threads) == 2 and device.threads[0] == threading.get_ident() != device.threads[1]


def test_an_engine_that_cannot_be_read_is_named(source):
    with pytest.raises(CheckError, match=r"a\.engine: tensorrt-rtx 11\.4\.0 cannot read the engine"):
        EngineExecutor(stand_in, b"", ENGINE, source.facts(), 1, stand_in.HostDevice())


@pytest.mark.parametrize(
    ("engines", "gpu", "runtimes", "file", "reason"),
    [
        ([], L4, {}, None, "holds no engine"),
        ([ENGINE], None, {}, None, "no NVIDIA GPU"),
        ([ENGINE], L4, {"tensorrt-rtx": "1.7.1"}, None, "built for compute capability 8.0, 8.6, and NVIDIA L4 has 8.9"),
        ([ENGINE], Gpu("A", "8.6"), {"tensorrt": "1.7.1"}, None, "needs tensorrt-rtx 1.7.1, which is not installed"),
        ([ENGINE], Gpu("A", "8.6"), {"tensorrt-rtx": "1.6.0"}, None, "and 1.6.0 is installed"),
        ([ENGINE], Gpu("A", "8.6"), {"tensorrt-rtx": "1.7.1"}, "a.engine", "built for A"),
        (
            [ENGINE, replace(ENGINE, file="b.engine", compute_capabilities=("8.9",))],
            L4,
            {"tensorrt-rtx": "1.7.1"},
            "b.engine",
            "b.engine",
        ),
    ],
)
def test_the_engine_is_chosen_by_generation_runtime_and_version(engines, gpu, runtimes, file, reason):
    choice = choose_engine(engines, gpu, runtimes)
    assert (choice.engine.file if choice.engine else None) == file and reason in choice.reason


def test_the_artifact_lists_its_engine_and_is_complete_without_it(engine_export):
    artifact, report = engine_export
    manifest = read_manifest(artifact)
    assert manifest.kind == "onnx" and {report.engine.file, ENGINES_FILE, "engines.html", "model.onnx"} <= set(
        manifest.files
    )
    assert read_engines(artifact) == (report.engine,)
    content = json.loads((artifact / ENGINES_FILE).read_text())
    assert content["report"]["run"] is False and len(content["report"]["layers"]) == 14
    page = (artifact / "engines.html").read_text()
    assert "built and not run" in page and page.count("not 2:4") == 14
    onnx.checker.check_model(artifact / "model.onnx")


def test_a_damaged_list_of_engines_is_named(tmp_path, engine_artifact):
    content = json.loads((engine_artifact / ENGINES_FILE).read_text())
    content["engines"][0]["file"] = "../a.engine"
    (tmp_path / ENGINES_FILE).write_text(json.dumps(content))
    with pytest.raises(DamagedArtifactError, match=r"names the engine '\.\./a\.engine'"):
        read_engines(tmp_path)
    (tmp_path / ENGINES_FILE).write_text("{}")
    with pytest.raises(DamagedArtifactError, match=r"engines\.json is damaged"):
        read_engines(tmp_path)
    (tmp_path / ENGINES_FILE).unlink()
    assert read_engines(tmp_path) == ()


def has_gpu():
    try:
        Driver.open()
    except CudaUnavailableError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_onnx_runs_and_a_warning_says_why(engine_artifact, caplog):
    with caplog.at_level(logging.WARNING):
        runner = open_runner(engine_artifact, slots=1, threads=1)
    assert isinstance(runner, OnnxRunner) and "no NVIDIA GPU here" in caplog.text
    assert runner.prefill(0, [1, 2, 3], 0, [2]).shape == (1, runner.vocab_size)


def test_installed_runtimes_are_real_packages():
    """This folder's parent holds no package `tensorrt`, and a bare folder of that name would not count as one."""
    assert set(installed_runtimes()) <= {"tensorrt", "tensorrt-rtx"}
    assert all(version[0].isdigit() for version in installed_runtimes().values())


class RecordingLibrary:
    """libcuda's entry points, as a script of statuses."""

    def __init__(self, failing=None):
        self.failing = failing

    def __getattr__(self, name):
        return lambda *arguments: 999 if name in (self.failing, "cuGetErrorString") else 0


def test_a_call_that_the_driver_refuses_is_named():
    with pytest.raises(CudaUnavailableError, match="cuInit failed: error 999"):
        Driver(RecordingLibrary("cuInit"))
    driver = Driver(RecordingLibrary("cuMemAlloc_v2"))
    with pytest.raises(CudaUnavailableError, match="cuMemAlloc_v2 failed"):
        driver.allocate(16)
