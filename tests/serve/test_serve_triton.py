"""The real Triton server, over real gRPC: what is served is what torch computes from the same weights."""

import json
import os
import select
import signal
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from crowds import crowd
from transformers import AutoModelForCausalLM
from tritonclient.grpc import service_pb2_grpc

from hebbline.artifacts import CheckError, InputError
from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.wire import infer_request

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def network(long_artifact):
    path = long_artifact.parent / "model"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()


def torch_greedy(network, ids, count):
    with torch.inference_mode():
        return network.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False
        )[0, len(ids) :].tolist()


def test_streamed_tokens_and_text_are_those_of_torch(client, network, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    chunks = list(client.stream(PROMPT, SamplingParameters(max_tokens=64)))
    expected = torch_greedy(network, ids, 64)
    assert [token for chunk in chunks for token in chunk.token_ids] == expected
    assert PROMPT + "".join(chunk.text for chunk in chunks) == tokenizer.decode(ids + expected)
    last = chunks[-1]
    assert (last.finish_reason, last.num_input_tokens, last.num_output_tokens) == ("length", len(ids), 64)
    assert len(chunks) == 64, "one response a token"


def test_many_requests_together_are_each_as_alone(server, client, network):
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 300, 3 + 7 * n).tolist() for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ids: client.complete(ids, SamplingParameters(max_tokens=24)), prompts))
    for ids, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == torch_greedy(network, ids, 24)


def test_sampling_follows_its_seed_alone(client):
    sampling = SamplingParameters(max_tokens=20, temperature=1.0, top_k=50, top_p=0.9, seed=7)
    with ThreadPoolExecutor(4) as pool:
        answers = {pool.submit(client.complete, PROMPT, sampling).result().token_ids for _ in range(4)}
    assert len(answers) == 1
    assert client.complete(PROMPT, SamplingParameters(max_tokens=20, temperature=1.0, seed=8)).token_ids not in answers


def test_stop_string_ends_the_text_before_it(client):
    whole = client.complete(PROMPT, SamplingParameters(max_tokens=40)).text
    stop = whole[10:14]
    cut = client.complete(PROMPT, SamplingParameters(max_tokens=40, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(stop)]


def test_log_probs_are_those_of_torch(client, network, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        expected = torch.log_softmax(network(torch.tensor([ids])).logits[0].double(), -1)
    scores = client.log_probs(ids)
    assert np.abs(scores - [expected[i, token] for i, token in enumerate(ids[1:])]).max() < 1e-4
    answer = client.complete(ids, SamplingParameters(max_tokens=1), return_log_probs=True)
    assert answer.log_probs[0] == pytest.approx(float(expected[-1, answer.token_ids[0]]), abs=1e-4)


def test_cancelled_requests_free_their_slots(client):
    """The four slots are taken by requests that would last for seconds, and then left."""
    streams = [client.stream(PROMPT, SamplingParameters(max_tokens=4000)) for _ in range(4)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    started = time.monotonic()
    assert client.complete(PROMPT, SamplingParameters(max_tokens=2)).num_output_tokens == 2
    assert time.monotonic() - started < 2


def test_a_full_queue_is_refused_and_recovers(client):
    """A crowd takes the 4 slots and the 8 places to wait at: one more is soon too many; none is when it has left."""
    with crowd(client.url):
        refusal = until_answered(client, lambda answer: isinstance(answer, CheckError))
    assert any(words in str(refusal) for words in ("try again later", "Exceeds maximum queue size"))
    answer = until_answered(client, lambda answer: not isinstance(answer, CheckError))
    assert answer.num_output_tokens == 2


def until_answered(client, is_awaited, seconds=60):
    """What a short request comes to, from the first time on that it is awaited; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_awaited(answer := _answer_or_error(client)):
        assert time.monotonic() < deadline, answer
    return answer


def _answer_or_error(client):
    try:
        return client.complete(PROMPT, SamplingParameters(max_tokens=2))
    except CheckError as error:
        return error


def test_the_final_response_is_empty_and_ids_are_echoed(server):
    request = infer_request(
        {
            "text_input": np.array([PROMPT.encode()], object),
            "stream": np.array([True]),
            "max_tokens": np.array([3], np.int32),
        },
        ["text_output"],
    )
    request.id = "request-17"
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        responses = [response.infer_response for response in stub.ModelStreamInfer(iter([request]), timeout=30)]
    finals = [response.parameters["triton_final_response"].bool_param for response in responses]
    assert finals == [False, False, False, True]
    assert not responses[-1].outputs
    assert [output.name for output in responses[0].outputs] == ["text_output"]
    assert {response.id for response in responses} == {"request-17"}


def test_http_streams_too(server):
    """The named scalars of the protocol, through Triton's own generate_stream."""
    body = json.dumps({"text_input": PROMPT, "max_tokens": 3, "temperature": 0.0, "stream": True}).encode()
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/llm/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        events = [json.loads(line[6:]) for line in response.read().decode().splitlines() if line.startswith("data: ")]
    assert [event["token_ids"] for event in events[:3]]
    assert events[2]["num_output_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        (PROMPT, {"max_tokens": 5000}, "more than the context of 4096 tokens"),
        ([999_999], {}, "vocabulary"),
        (PROMPT, {"max_tokens": 0}, "nothing to do"),
    ],
)
def test_wrong_requests_are_refused_in_words(client, prompt, sampling, message):
    with pytest.raises(InputError, match=message):
        client.complete(prompt, SamplingParameters(**sampling))


def test_a_server_that_is_not_there():
    with Client(f"127.0.0.1:{free_ports().grpc}") as nobody, pytest.raises(InputError, match="no server answers"):
        nobody.complete(PROMPT)


def test_a_dead_model_process_is_replaced(server, client):
    """Triton never does this itself: it goes on to call the model ready."""
    stub = _stub_process(server)
    stream = client.stream(PROMPT, SamplingParameters(max_tokens=4000))
    next(stream)
    os.kill(stub, signal.SIGKILL)
    with pytest.raises(CheckError, match="ended during the request"):
        list(stream)
    client.wait_ready(60)
    assert _stub_process(server) != stub
    assert client.complete(PROMPT, SamplingParameters(max_tokens=2)).num_output_tokens == 2


def test_waiting_outlasts_a_connection_that_breaks(server):
    """As one does to a server that is about to be replaced."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        breaker = threading.Thread(target=_relay_all_but_the_first_request, args=(listener, server.grpc_url))
        breaker.start()
        with Client(f"{host}:{port}") as client:
            client.wait_ready(30)
        breaker.join(30)
    assert not breaker.is_alive()


def _relay_all_but_the_first_request(listener: socket.socket, url: str) -> None:
    """Relays two connections; the first breaks when the client has sent a request on it."""
    host, _, port = url.rpartition(":")
    for breaks in (True, False):
        near, _ = listener.accept()
        with near, socket.create_connection((host, int(port))) as far:
            answered = False
            while True:
                ready, _, _ = select.select([near, far], [], [], 30)
                data = ready[0].recv(1 << 16) if ready else b""
                # The client speaks first, and sends its request when the server has answered.
                if not data or (breaks and answered and ready[0] is near and len(data) > 60):
                    break
                answered |= ready[0] is far
                (far if ready[0] is near else near).sendall(data)


def _stub_process(server: TritonServer) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*"):
            if _is_stub_of(process, server.pid):
                return int(process.name)
        time.sleep(0.1)
    raise AssertionError("the server has no model process")


def _is_stub_of(process: Path, parent: int | None) -> bool:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[1]) == parent and "triton_python_backend_stub" in (process / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
