"""What is open of a server: inference, and nothing that reaches code, files or memory; here and in production."""

import base64
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from hebbline.runtime.engines import EngineFacts
from hebbline.runtime.static_cache import StepLimits
from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.process import Ports, free_ports, is_model_ready, kill_group
from hebbline.serve.triton.production import production_commands
from hebbline.serve.triton.wheel import find_wheel

HEBBLINE = str(Path(sys.executable).with_name("hebbline"))
SCRIPTS = {
    "docker": 'while [ "$1" != sh ]; do shift; done; exec "$@"',
    "pip": 'printf "%s\\n" "$@" > "$0.called"',
    "tritonserver": 'printf "%s\\n" "$@" > "$0.called"',
}
"""In place of what is not here: the container's command runs in this machine's shell, and its programs note how."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A path that takes quoting in a shell."""
    return tmp_path_factory.mktemp("production") / "the models"


@pytest.fixture(scope="session")
def command(tiny_artifact, repository):
    """What is printed for production."""
    filling = [HEBBLINE, "serve", tiny_artifact, "--repository", repository, "--copy", "--fill-only"]
    said = subprocess.run([*filling, "--grpc-port", "9001"], capture_output=True, text=True, check=True).stderr
    return said[said.index("docker run") : said.index("\nInference, health")]


@pytest.fixture(scope="session")
def called(tmp_path_factory, command):
    """The arguments of the programs that the printed command runs in the container."""
    programs = tmp_path_factory.mktemp("programs")
    for name, script in SCRIPTS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.defpath])
    subprocess.run(["sh", "-c", command], env={"PATH": path}, check=True)
    return {name: (programs / f"{name}.called").read_text().splitlines() for name in ("pip", "tritonserver")}


@pytest.fixture(scope="session")
def production(tmp_path_factory, repository, called):
    """The gRPC and HTTP ports, and flags, of a real server that was started with exactly the printed flags.

    Only what a container gives is put in: its paths, its ports, its network, and the backend of the server.
    """
    directory = tmp_path_factory.mktemp("container")
    wheel, ports = find_wheel(), free_ports()
    (directory / "models").symlink_to(repository)
    wheel.assemble_backends(directory / "backends")
    flags = called["tritonserver"]
    given = {
        "--model-repository=/models": f"--model-repository={directory / 'models'}",
        "--grpc-address=0.0.0.0": "--grpc-address=127.0.0.1",
        "--grpc-port=8001": f"--grpc-port={ports.grpc}",
        "--http-port=8000": f"--http-port={ports.http}",
        "--metrics-port=8002": f"--metrics-port={ports.metrics}",
    }
    assert given.keys() <= set(flags)
    arguments = [str(wheel.binary), *(given.get(flag, flag) for flag in flags)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [*arguments, f"--backend-directory={directory / 'backends'}", "--exit-timeout-secs=3"],
            env=wheel.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_model(process, ports)
        yield ports, flags
    finally:
        process.terminate()
        process.wait(60)
        kill_group(process)


def wait_for_model(process, ports):
    deadline = time.monotonic() + 60
    while not is_model_ready(ports):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(params=["production", "here"])
def served(request) -> tuple[Ports, list[str]]:
    """The ports and flags of a server that runs: with those that are printed, or of `hebbline serve`."""
    if request.param == "production":
        return request.getfixturevalue("production")
    server = request.getfixturevalue("server")
    return server.ports, Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")


def test_the_printed_command_publishes_inference_on_the_loopback_interface_alone(command, repository):
    words = shlex.split(command)
    assert words[:3] == ["docker", "run", "--rm"] and words[-4:-1] == [
        "nvcr.io/nvidia/tritonserver:24.10-py3",
        "sh",
        "-c",
    ]
    options = words[3:-4]
    assert [after for word, after in pairwise(options) if word in ("-p", "--publish")] == ["127.0.0.1:9001:8001"]
    assert not {"-P", "--publish-all", "--network", "--net", "--privileged", "--gpus"} & set(options)
    assert options[options.index("-v") + 1] == f"{repository}:/models:ro"


def test_the_printed_flags_are_those_of_the_local_server_where_it_matters(called, served):
    _, local = served
    assert called["pip"][0] == "install" and called["pip"][2:] == ["numpy<2"]
    assert called["pip"][1].startswith("/models/hebbline-") and called["pip"][1].endswith(".whl")
    restricted = "model-repository,shared-memory,trace,logging:no:body="
    for flags in (called["tritonserver"], local):
        for option in ("--grpc-restricted-protocol=", "--http-restricted-api="):
            (flag,) = [flag for flag in flags if flag.startswith(option)]
            assert flag.startswith(option + restricted) and len(flag) >= len(option + restricted) + 32
        assert {"--http-address=127.0.0.1", "--metrics-address=127.0.0.1", "--model-control-mode=explicit"} <= set(
            flags
        )


def test_every_run_of_the_printed_command_has_another_key(called, command):
    script = shlex.split(command)[-1].partition(" &&")[0] + '; echo "$key"'
    keys = {subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout for _ in range(3)}
    assert len(keys) == 3 and not any(key.strip() in "\n".join(called["tritonserver"]) for key in keys)


def test_without_a_key_nothing_starts(command):
    script = shlex.split(command)[-1].replace("/proc/sys/kernel/random/uuid", "/nowhere")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0 and "/nowhere" in done.stderr and "tritonserver" not in done.stderr


def test_inference_works(served):
    ports, _ = served
    with Client(f"127.0.0.1:{ports.grpc}", timeout=60) as client:
        client.wait_ready(30)
        assert client.complete("the quick", SamplingParameters(max_tokens=3)).num_output_tokens == 3
    status, answer = post(ports, "/v2/models/llm/generate", {"text_input": "the quick", "max_tokens": 2})
    assert status == 200 and answer["num_output_tokens"] == 2


def test_the_pages_show_no_other_command_than_what_is_printed():
    engine = EngineFacts("a.engine", "tensorrt-rtx", "1.7.1.116", ("8.6",), "float16", StepLimits(1, 1))
    printed = [production_commands(Path("/srv/models"), engines)[0].command for engines in ([], [engine])]
    root = Path(__file__).parents[2]
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    blocks = [block for page in pages for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)]
    shown = [block.strip() for block in blocks if re.search(r"docker run|tritonserver -", block)]
    opening = [block for block in shown if re.search(r" (-p|-P|--publish\S*|--net\S*)[ =]|tritonserver -", block)]
    assert sorted(opening) == sorted(printed)  # others, in which something is built, open no port


MODEL = {"file:1/model.py": b"open('/tmp/hebbline-was-here', 'w')\nclass TritonPythonModel:\n    pass\n"}
CONFIG = json.dumps({"name": "planted", "backend": "python"})
CALLS = {
    "loading a model that brings its code": lambda client: client.load_model("planted", config=CONFIG, files=MODEL),
    "loading": lambda client: client.load_model("llm"),
    "unloading": lambda client: client.unload_model("llm"),
    "the repository's index": lambda client: client.get_model_repository_index(),
    "registering memory": lambda client: client.register_system_shared_memory("region", "/anything", 64),
    "unregistering memory": lambda client: client.unregister_system_shared_memory(),
    "memory": lambda client: client.get_system_shared_memory_status(),
    "memory of GPUs": lambda client: client.register_cuda_shared_memory("region", base64.b64encode(b"handle"), 0, 64),
    "the trace's file": lambda client: client.update_trace_settings(settings={"trace_file": "/tmp/hebbline-trace"}),
    "the trace": lambda client: client.get_trace_settings(),
    "the log's file": lambda client: client.update_log_settings({"log_file": "/tmp/hebbline-log"}),
    "the log": lambda client: client.get_log_settings(),
}


@pytest.mark.parametrize("call", CALLS)
def test_grpc_refuses_everything_else(served, call):
    ports, _ = served
    with (
        InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
        pytest.raises(InferenceServerException, match="This protocol is restricted"),
    ):
        CALLS[call](client)


PATHS = {
    "/v2/repository/models/planted/load": {
        "parameters": {"config": CONFIG, **{name: base64.b64encode(code).decode() for name, code in MODEL.items()}}
    },
    "/v2/repository/models/llm/load": {},
    "/v2/repository/models/llm/unload": {},
    "/v2/repository/index": {},
    "/v2/systemsharedmemory/region/region/register": {"key": "/anything", "offset": 0, "byte_size": 64},
    "/v2/systemsharedmemory/unregister": {},
    "/v2/cudasharedmemory/region/region/register": {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64},
    "/v2/trace/setting": {"trace_file": "/tmp/hebbline-trace"},
    "/v2/models/llm/trace/setting": {"trace_file": "/tmp/hebbline-trace"},
    "/v2/logging": {"log_file": "/tmp/hebbline-log"},
}


@pytest.mark.parametrize("path", PATHS)
def test_http_refuses_everything_else(served, path):
    ports, _ = served
    status, answer = post(ports, path, PATHS[path])
    assert status == 403 and "restricted" in answer["error"]


def post(ports, path, content):
    request = urllib.request.Request(f"http://127.0.0.1:{ports.http}{path}", json.dumps(content).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_not_even_who_has_read_the_key_gets_in(served):
    """Every user of a machine can read command lines. So the key's header has a name that no client can send."""
    ports, flags = served
    (flag,) = [flag for flag in flags if flag.startswith("--grpc-restricted-protocol=")]
    name, _, key = flag.partition("=")[2].partition(":")[2].partition("=")
    (flag,) = [flag for flag in flags if flag.startswith("--http-restricted-api=")]
    assert flag.endswith(f"{name}={key}")
    index = "/inference.GRPCInferenceService/RepositoryIndex"
    answer = exchange(ports.grpc, grpc_call(index, (f"triton-grpc-protocol-{name}", key)))
    assert answer and b"READY" not in answer
    answer = exchange(ports.http, f"POST /v2/repository/index HTTP/1.1\r\n{name}: {key}\r\n\r\n".encode())
    assert b"403 Forbidden" in answer and b"READY" not in answer


def test_the_hand_made_grpc_call_is_understood(served):
    """Without which the refusal above would show nothing."""
    ports, _ = served
    answer = exchange(ports.grpc, grpc_call("/inference.GRPCInferenceService/ServerMetadata", ("a-name", "value")))
    assert b"2.51.0" in answer


def grpc_call(method, header):
    """A unary call without arguments in the bytes of HTTP/2: no library sends a name that is not allowed."""
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
    fields = [*headers.items(), ("content-type", "application/grpc"), header]
    literal = b"".join(b"\0" + bytes([len(a)]) + a.encode() + bytes([len(b)]) + b.encode() for a, b in fields)
    frames = [(4, 0, 0, b""), (1, 4, 1, literal), (0, 1, 1, bytes(5))]  # settings, headers, data
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
        struct.pack(">I", len(content))[1:] + bytes([kind, flag]) + struct.pack(">I", stream) + content
        for kind, flag, stream, content in frames
    )


def exchange(port, request):
    """All that comes back within a second after a request's bytes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(1)
        connection.sendall(request)
        try:
            while data := connection.recv(1 << 16):
                answer += data
        except TimeoutError:
            pass
    return answer
