"""Starting and stopping the real server, and repositories that must never reach it."""

import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hebbline.artifacts import DamagedArtifactError, InputError
from hebbline.cli import main
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.scoring import log_probs
from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import Ports, free_ports
from hebbline.serve.triton.repository import TEMPLATE, check_model, fill_repository
from hebbline.serve.triton.settings import Settings
from hebbline.serve.triton.wheel import TritonWheel


def processes_of(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_stop_drains_an_open_stream_and_leaves_no_process(tiny_artifact, tmp_path):
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=2, threads=1), copy=True)
    server = TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=5)
    server.start()
    server.wait_ready()
    with Client(server.grpc_url) as client:
        stream = client.stream("the quick", SamplingParameters(max_tokens=100))
        tokens = list(next(stream).token_ids)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        tokens += [token for chunk in stream for token in chunk.token_ids]
        stopping.join()
    assert len(tokens) == 100, "an open request is finished"
    assert not processes_of(str(tmp_path))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.ports.grpc)) != 0


def test_stop_does_not_wait_for_a_client_that_stays(long_artifact, tmp_path):
    fill_repository(long_artifact, tmp_path / "repository", Settings(slots=2, threads=1, drain_seconds=1))
    with TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server:
        server.wait_ready()
        client = Client(server.grpc_url)
        stream = client.stream("the quick", SamplingParameters(max_tokens=4000))
        next(stream)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    client.close()
    assert not processes_of(str(tmp_path))


def test_a_port_in_use_is_named(tiny_artifact, tmp_path):
    fill_repository(tiny_artifact, tmp_path / "repository", Settings())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = free_ports()
        server = TritonServer(
            tmp_path / "repository", tmp_path, Ports(taken.getsockname()[1], ports.http, ports.metrics)
        )
        with pytest.raises(InputError, match=r"grpc port \d+: Address already in use"):
            server.start()


def test_a_path_that_triton_cannot_pass_on_is_named(tiny_artifact, tmp_path):
    """The model's process would never start, and the server would wait for it."""
    fill_repository(tiny_artifact, tmp_path / "my models", Settings())
    with (
        pytest.raises(InputError, match="my models: Triton runs no model below a path with spaces"),
        TritonServer(tmp_path / "my models", tmp_path, free_ports()),
    ):
        pass


@pytest.mark.parametrize("ports", [(0, 1, 2), (8000, 8000, 8002), (70000, 1, 2)])
def test_impossible_ports_are_refused(ports):
    with pytest.raises(InputError, match="port"):
        Ports(*ports)


def test_the_filled_repository_is_the_template_with_the_artifact(tiny_artifact, tmp_path):
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=3), copy=True)
    model = tmp_path / "repository/llm"
    assert (model / "1/model.py").read_text() == (TEMPLATE / "llm/1/model.py").read_text()
    config = check_model(model)
    template = check_model_config_text(TEMPLATE / "llm/config.pbtxt")
    assert config.parameters["slots"].string_value == "3"
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in template.input]
    assert [tensor.name for tensor in config.output] == [tensor.name for tensor in template.output]


def check_model_config_text(path):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_filling_again_replaces_ours_and_nobody_elses(tiny_artifact, tmp_path):
    repository = tmp_path / "repository"
    fill_repository(tiny_artifact, repository, Settings())
    (repository / "other").mkdir()
    fill_repository(tiny_artifact, repository, Settings(slots=2))
    assert check_model(repository / "llm").parameters["slots"].string_value == "2"
    assert (repository / "other").is_dir()
    (repository / "llm/1/model.py").write_text("somebody's code")
    with pytest.raises(InputError, match="not a model of hebbline's"):
        fill_repository(tiny_artifact, repository, Settings())


def test_a_damaged_artifact_never_reaches_the_server(tiny_artifact, tmp_path):
    damaged = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, damaged)
    data = bytearray((damaged / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(data)
    with pytest.raises(DamagedArtifactError, match=r"model\.onnx is damaged"):
        fill_repository(damaged, tmp_path / "repository", Settings())
    assert not (tmp_path / "repository/llm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: (model / "1/model.py").unlink(), r"model\.py is missing"),
        (lambda model: (model / "config.pbtxt").write_text("name: ["), "malformed model configuration"),
        (lambda model: _edit(model, '"slots"', '"slotz"'), "no parameter 'slotz'"),
        (lambda model: _edit(model, '"as-exported"', '"int3"'), "kv_cache must be one of"),
        (lambda model: _edit(model, 'name: "llm"', 'name: "other"'), "of a model 'other'"),
    ],
)
def test_a_broken_repository_is_refused_before_triton_hangs_on_it(tiny_artifact, tmp_path, change, message):
    fill_repository(tiny_artifact, tmp_path / "repository", Settings())
    change(tmp_path / "repository/llm")
    with pytest.raises(InputError, match=message):
        check_model(tmp_path / "repository/llm")


def _edit(model, old, new):
    path = model / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_keys_and_values_are_kept_as_the_server_is_told(long_artifact, tmp_path):
    """Log-probabilities over the wire are those of a runner with the same cache, and not those of the exact one."""
    fill_repository(long_artifact, tmp_path / "repository", Settings(slots=2, threads=1, kv_cache="int8"))
    ids = list(range(5, 95))
    with TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server:
        server.wait_ready()
        with Client(server.grpc_url, timeout=60) as client:
            served = client.log_probs(ids)
    exact, narrow = (log_probs(open_onnx(long_artifact, slots=2, threads=1, kv=kv), ids) for kv in ("float32", "int8"))
    np.testing.assert_allclose(served, narrow, atol=1e-5)
    assert np.abs(np.asarray(served) - exact).max() > 1e-4


@pytest.mark.parametrize(
    "settings", [{"slots": 0}, {"slots": 5000}, {"threads": -1}, {"max_waiting": -1}, {"kv_cache": "int3"}]
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Settings(**settings)


@pytest.fixture
def dying_stub(tmp_path, monkeypatch):
    """In place of what runs models in Python: a program that says why, and ends at once."""
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text("#!/bin/sh\necho libsomething.so: cannot open shared object file >&2\nexit 127\n")
    stub.chmod(0o755)
    monkeypatch.setattr(TritonWheel, "stub", property(lambda wheel: stub))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("further", [[], ["--model-control"]])
def test_a_model_whose_process_dies_before_python_begins_ends_the_start(
    tiny_artifact, tmp_path, dying_stub, capsys, further
):
    """Triton 2.51 would wait for it for ever."""
    ports = free_ports()
    numbers = ["--grpc-port", str(ports.grpc), "--http-port", str(ports.http), "--metrics-port", str(ports.metrics)]
    started = time.monotonic()
    assert main(["serve", str(tiny_artifact), *numbers, *further, "--drain-seconds", "0"]) == 1
    assert time.monotonic() - started < 60
    message = capsys.readouterr().err.splitlines()[-1]
    assert "the process of the model 'llm'" in message and "died (exit code 127) before Python had begun" in message
    assert "libsomething.so: cannot open shared object file" in message and "server.log" in message
    assert not processes_of(str(tmp_path))
