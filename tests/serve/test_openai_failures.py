"""What goes wrong behind the gateway, or in what clients send, is told in words, and is never an error of its own."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from gateways import call, running_gateway, with_template

from hebbline.artifacts.manifest import MANIFEST_FILE
from hebbline.serve.async_client import NO_RETRIES, AsyncClient
from hebbline.serve.client_errors import ServerUnavailableError
from hebbline.serve.openai.app import _result
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings

HALF = "\ud800"
"""Half of a surrogate pair: JSON can write it, UTF-8 cannot."""
VALUES = (HALF, [HALF], {HALF: HALF}, {"type": HALF}, [{"role": HALF, "content": HALF}], float("nan"), 10**30, None)
FIELDS = ("model", "prompt", "stop", "user", "logit_bias", "tools", "response_format", "messages", "seed", HALF)
PATHS = {"/v1/completions": {"prompt": "a"}, "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]}}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, tiny_artifact):
    return with_template(tiny_artifact, tmp_path_factory.mktemp("failures") / "artifact")


@pytest.fixture(scope="module")
def lonely(artifact):
    """A gateway whose server is not there."""
    nobody = SimpleNamespace(ports=free_ports(), grpc_url=f"127.0.0.1:{free_ports().grpc}")
    with running_gateway(artifact, nobody) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", FIELDS)
def test_what_has_no_form_in_utf_8_is_quoted_all_the_same(lonely, path, field):
    for value in VALUES:
        body = {"model": "llm", "max_tokens": 2, **PATHS[path], field: value}
        status, answer, headers = call(lonely, path, json.dumps(body).encode())
        assert status in (400, 404, 503), (value, answer)
        assert answer["error"]["message"] and (status != 503 or headers["Retry-After"])


def test_a_server_that_is_not_there_is_a_503(lonely):
    body = {"model": "llm", "max_tokens": 2, "prompt": "a"}
    for extra in ({}, {"stream": True}, {"n": 3}):
        status, answer, headers = call(lonely, "/v1/completions", {**body, **extra})
        assert (status, answer["error"]["code"]) == (503, "server_unavailable") and headers["Retry-After"]


def test_further_models_that_are_damaged_are_left_out(artifact, lonely, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / MANIFEST_FILE).write_text("{")
    nobody = SimpleNamespace(ports=free_ports(), grpc_url=f"127.0.0.1:{free_ports().grpc}")
    for further in (lambda: {"broken": broken}, lambda: {"missing": tmp_path / "missing"}):
        with running_gateway(artifact, nobody, further=further) as gateway:
            assert [model["id"] for model in call(gateway, "/v1/models")[1]["data"]] == ["llm"]
            status, answer, _ = call(gateway, "/v1/completions", {"model": "broken", "prompt": "a"})
            assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_a_client_whose_connection_is_closed_is_told_so():
    async def ask():
        client = AsyncClient("127.0.0.1:1", retries=NO_RETRIES)
        await client.close()
        await client.complete("a", SamplingParameters(max_tokens=1))

    with pytest.raises(ServerUnavailableError, match="is closed"):
        asyncio.run(ask())


def test_work_that_somebody_else_has_cancelled_is_no_failure_of_ours():
    async def work():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        return _result(future)

    with pytest.raises(ServerUnavailableError, match="was closed"):
        asyncio.run(work())


@pytest.mark.parametrize(
    ("code", "details", "is_gone"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", True),
        (grpc.StatusCode.CANCELLED, "", True),
        (grpc.StatusCode.UNKNOWN, "Stream removed", True),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", True),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", True),
        (grpc.StatusCode.INTERNAL, "the model failed", False),
    ],
)
def test_the_ways_in_which_a_server_goes_are_one_error(code, details, is_gone):
    async def translate():
        async with AsyncClient("127.0.0.1:1") as client:
            return client._translated(grpc.aio.AioRpcError(code, None, None, details))

    assert isinstance(asyncio.run(translate()), ServerUnavailableError) == is_gone


def test_a_server_that_dies_under_load_is_told_in_words(long_artifact, tmp_path):
    """Whatever a request is at: it is answered, or refused with 429 or 503, or its stream ends with such an error."""
    fill_repository(long_artifact, tmp_path / "repository", Settings(slots=2, threads=1, max_waiting=4))
    with (
        TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server,
        running_gateway(long_artifact, server) as gateway,
    ):
        server.wait_ready()
        ends = Counter()
        stop = time.monotonic() + 12

        def ask(number):
            while time.monotonic() < stop:
                body = {"model": "llm", "prompt": f"the quick {number}", "max_tokens": 60, "stream": number % 2 == 0}
                ends[end_of(call(gateway, "/v1/completions", body))] += 1

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, number) for number in range(8)]
            for _ in range(3):
                time.sleep(2.5)
                with contextlib.suppress(ProcessLookupError, TypeError):
                    os.killpg(server.pid, signal.SIGKILL)
            for future in asking:
                future.result()
    assert set(ends) <= {"whole", "server_busy", "server_unavailable", "deadline_exceeded"}, ends
    assert ends["whole"] > 0 and ends["server_unavailable"] > 0


def end_of(answer):
    """How a request ended: whole, or with the code of an error."""
    status, content, _ = answer
    if status != 200:
        return content["error"]["code"]
    if isinstance(content, dict):
        return "whole"
    events = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
    return "whole" if events[-1] == "[DONE]" else json.loads(events[-1])["error"]["code"]
