"""Two servers behind nginx, with the shipped configuration, and one of them killed under load."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from gateways import running_gateway

from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIG = Path(__file__).parents[2] / "deploy/nginx/nginx.conf"
TOKENS = 60


@pytest.fixture(scope="module")
def second_server(tmp_path_factory, long_artifact):
    directory = tmp_path_factory.mktemp("second")
    fill_repository(long_artifact, directory / "repository", Settings(slots=4, threads=1, max_waiting=32))
    with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def front(server, second_server, long_artifact, tmp_path):
    """nginx's port before two gateways; both models are the same."""
    if NGINX is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    with (
        running_gateway(long_artifact, server, model_name="tiny") as first,
        running_gateway(long_artifact, second_server, model_name="tiny") as second,
    ):
        port = free_ports().grpc
        text = CONFIG.read_text().replace("worker_processes auto", "worker_processes 1")
        for old, new in ((8081, first.port), (8082, second.port), (8080, port)):
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        text = re.sub(r"/tmp/hebbline-nginx", str(tmp_path / "nginx"), text)
        (tmp_path / "nginx.conf").write_text(text)
        command = [NGINX, "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;", "-e", str(tmp_path / "errors")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
            wait_for(lambda: listens(port))
            yield port
            running.terminate()


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stream(port, prompt):
    """The text of a streamed completion, how far it came, and the error that it ended with."""
    fields = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.0\r\nHost: front\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        answer = connection.makefile("rb").read().decode()
    status = int(answer.split()[1])
    events = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    parsed = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(event["choices"][0]["text"] for event in parsed if "choices" in event)
    errors = [event["error"]["message"] for event in parsed if "error" in event]
    is_whole = "[DONE]" in events and not errors
    return status, text, errors, is_whole


def test_nothing_that_had_not_begun_is_lost(front, server, second_server):
    prompts = [f"the quick brown fox {number}" for number in range(32)]
    with Client(server.grpc_url) as client:
        expected = [client.complete(prompt, SamplingParameters(max_tokens=TOKENS)).text for prompt in prompts]
    answers = {}
    begun = threading.Event()

    def work(mine):
        for prompt in mine:
            answers[prompt] = stream(front, prompt)
            begun.set()

    threads = [threading.Thread(target=work, args=(prompts[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    victim = second_server.pid
    with contextlib.suppress(ProcessLookupError):
        os.killpg(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(answers) == len(prompts)
    for prompt, text in zip(prompts, expected, strict=True):
        status, got, errors, is_whole = answers[prompt]
        assert status == 200, "nothing that had not begun was lost"
        if is_whole:
            assert got == text, "whichever server it came from"
        else:
            assert errors and text.startswith(got), "what had begun ended with an error in words"
    assert sum(is_whole for *_, is_whole in answers.values()) >= len(prompts) - 8
    assert stream(front, prompts[0])[3]
