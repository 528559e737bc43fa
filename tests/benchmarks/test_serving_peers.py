"""Servers of others in `hebbline bench serve`: refusals, and a small process that speaks as they do."""

import json
import os
import sys
from pathlib import Path

import pytest

from hebbline.artifacts import CheckError, InputError
from hebbline.benchmarks.serving_peers import PeerLoad, PeerProcess, find_peer
from hebbline.cli import main

LOAD = PeerLoad(threads=1, slots=3, tokens=300)
STAND_IN = '''#!{python}
"""Takes the options of a peer's server, and answers completions of one letter a token."""
import http.server, json, os, subprocess, sys, time

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
here = os.path.dirname(os.path.abspath(__file__))
if os.path.exists(here + "/ends"):
    sys.exit("there is no such model")
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
seen = open(here + "/seen", "a", buffering=1)
print(json.dumps([options, os.getpid(), helper.pid, len(os.sched_getaffinity(0))]), file=seen)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.send_response(200 if self.path in ("/health", "/v2/health/ready") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(json.dumps([self.path, body]), file=seen)
        if os.path.exists(here + "/refuses"):
            self.send_error(400, "a prompt of this kind is not taken")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = body["max_tokens"]
        for number in range(count):
            # The second token has no text, as one within a character has none.
            if number != 1:
                self.event({{"choices": [{{"text": "a", "index": 0, "finish_reason": None, "logprobs": None}}]}})
        end = {{"choices": [{{"text": "", "index": 0, "finish_reason": "length", "logprobs": None}}]}}
        self.event(end | {{"usage": {{"completion_tokens": count}}}})
        self.chunk(b"data: [DONE]\\n\\n")
        self.chunk(b"")

    def event(self, value):
        self.chunk(b"data: " + json.dumps(value).encode() + b"\\n\\n")

    def chunk(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))


port = int(options.get("--port") or options["--rest_port"])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A directory that is the first of PATH."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


def put(programs, name):
    (programs / name).write_text(STAND_IN.format(python=sys.executable))
    (programs / name).chmod(0o755)


def gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def openvino(tmp_path):
    directory = tmp_path / "ir"
    directory.mkdir()
    (directory / "graph.pbtxt").write_text("")
    return directory


def said(programs):
    return [json.loads(line) for line in (programs / "seen").read_text().splitlines()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("program", "make", "name", "path"),
    [
        ("llama-server", gguf, "llama.cpp", "/v1/completions"),
        ("ovms", openvino, "openvino", "/v3/completions"),
    ],
)
def test_a_peer_has_rows_of_the_same_form(tiny_artifact, tmp_path, programs, capsys, program, make, name, path):
    put(programs, program)
    options = ["--streams", "2", "--lengths", "4,20", "--new-tokens", "6", "--workloads", "mixed", "--threads", "1"]
    peer = ["--peer-model", str(make(tmp_path))]
    assert main(["bench", "serve", str(tiny_artifact), *options, "--shared", "0", *peer, "--json"]) == 0
    ours, theirs = json.loads(capsys.readouterr().out)["rows"]
    assert (ours["front"], theirs["front"], theirs["workload"], theirs["streams"]) == ("grpc", name, "mixed", 2)
    assert ours["tokens"] == theirs["tokens"] == 6 * 2 * 2, "a token without text counts as well"
    assert set(theirs["processor_ms"]) == {"peer", "client"} and theirs["stack_share"] is None
    assert set(theirs) == set(ours) and theirs["runner_ms"] == ours["runner_ms"]
    (started, pid, helper, cores), *requests = said(programs)
    assert "127.0.0.1" in started.values()
    assert int(started.get("--port") or started["--rest_port"]) < 32768
    assert started.get("--threads") == "1" or cores == 1
    assert not is_alive(pid) and not is_alive(helper)
    assert {asked for asked, _ in requests} == {path}
    assert all(body["ignore_eos"] and body["temperature"] == 0 for _, body in requests)
    if name == "llama.cpp":
        assert sorted(len(body["prompt"]) for _, body in requests) == [4, 4, 4, 20, 20]
    else:
        assert all(isinstance(body["prompt"], str) and body["prompt"] for _, body in requests)


def test_llama_cpp_gets_room_for_all_streams(tmp_path, programs):
    put(programs, "llama-server")
    command = find_peer(gguf(tmp_path), LOAD).command
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--parallel"], options["--ctx-size"]) == ("3", str(3 * 512))
    assert options["--threads"] == options["--threads-batch"] == "1"


def test_the_package_of_llama_cpp_is_taken_where_there_is_no_program(tmp_path, nothing_installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "llama_cpp")
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise RuntimeError('it is not to be imported here')")
    monkeypatch.syspath_prepend(tmp_path)
    peer = find_peer(gguf(tmp_path), LOAD)
    assert peer.name == "llama-cpp-python" and peer.command[:3] == (sys.executable, "-m", "llama_cpp.server")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda directory: directory / "absent.gguf", "there is no such file"),
        (lambda directory: directory, "has graph.pbtxt"),
        (gguf, "llama.cpp's server is not installed"),
        (openvino, "there is no ovms on PATH"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_measured(
    tiny_artifact, tmp_path, nothing_installed, capsys, make, message
):
    options = ["--lengths", "4", "--shared", "0", "--new-tokens", "4", "--peer-model", str(make(tmp_path))]
    assert main(["bench", "serve", str(tiny_artifact), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err and "tokens/s" not in said.err


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"something else")
    with pytest.raises(InputError, match="in the format GGUF"):
        find_peer(tmp_path / "model.bin", LOAD)


def test_a_peer_that_ends_at_the_start_is_quoted(tmp_path, programs):
    put(programs, "llama-server")
    (programs / "ends").touch()
    with (
        pytest.raises(CheckError, match=r"llama\.cpp's server has ended with 1: there is no such model"),
        PeerProcess(find_peer(gguf(tmp_path), LOAD), tmp_path / "log"),
    ):
        pass


def test_a_peer_that_refuses_requests_is_quoted_and_ended(tiny_artifact, tmp_path, programs, capsys):
    put(programs, "llama-server")
    (programs / "refuses").touch()
    options = ["--streams", "1", "--lengths", "4", "--shared", "0", "--new-tokens", "2", "--workloads", "mixed"]
    assert main(["bench", "serve", str(tiny_artifact), *options, "--peer-model", str(gguf(tmp_path))]) == 1
    assert "a prompt of this kind is not taken" in capsys.readouterr().err
    assert not is_alive(said(programs)[0][1])


def test_threads_are_those_of_our_runtime():
    cores = sorted(os.sched_getaffinity(0))
    assert PeerLoad(1, 1, 1).cores == cores[:1] and PeerLoad(0, 1, 1).cores == cores
