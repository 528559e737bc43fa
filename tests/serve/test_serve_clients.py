"""Clients of vLLM's and TensorRT-LLM's Triton backends, as they are: tritonclient's own classes, and HTTP."""

import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hebbline.artifacts import CheckError, InputError
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings
from hebbline.serve.wire import infer_request

PROMPT = "the quick brown fox"


def text(*values, shape=(1,)):
    return np.array([value.encode() for value in values], object).reshape(shape)


def stream(server, model, arrays, outputs=(), **options):
    """The responses of one request, each a dictionary of arrays; raises what the server says."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs] or None
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, inputs, outputs=wanted, **options)
        client.stop_stream()  # waits for the last response
    results = [answers.get() for _ in range(answers.qsize())]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [{o.name: result.as_numpy(o.name) for o in result.get_response().outputs} for result in results]


def post(server, model, fields, kind="generate"):
    """The status and the body of an HTTP request; a body that is a stream as the list of its events."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.ports.http}/v2/models/{model}/{kind}", json.dumps(fields).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            body = response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    if kind == "generate":
        return 200, json.loads(body)
    return 200, [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]


def texts(responses):
    return "".join(response["text_output"].reshape(-1)[0].decode() for response in responses)


def test_a_repository_has_both_models_and_keeps_those_of_others(tiny_artifact, tmp_path):
    repository = tmp_path / "repository"
    for _ in range(2):  # what hebbline put there is replaced
        fill_repository(tiny_artifact, repository, Settings())
        assert sorted(path.name for path in repository.iterdir()) == ["ensemble", "llm"]
        assert (repository / "ensemble" / "1").is_dir()
    (repository / "ensemble" / "config.pbtxt").write_text('name: "ensemble"')
    with pytest.raises(InputError, match=r"ensemble exists and is not a model of hebbline's"):
        fill_repository(tiny_artifact, repository, Settings())
    assert (repository / "ensemble" / "config.pbtxt").read_text() == 'name: "ensemble"'


@pytest.fixture
def expected(client):
    """What our own client is answered."""
    return client.complete(PROMPT, SamplingParameters(max_tokens=8, temperature=0.8, top_p=0.95, top_k=40, seed=3))


VLLM_FIELDS = {
    "temperature": "0.8",
    "top_p": "0.95",
    "top_k": "40",
    "max_tokens": "8",
    "seed": "3",
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": "0.0",
    "stop": None,
    "ignore_eos": False,
    "logprobs": None,
}


def test_a_client_of_vllm_by_grpc(server, client, expected):
    """It sends its fields as a tensor, and once more as the request's parameters; flags choose the outputs."""
    arrays = {
        "text_input": text(PROMPT),
        "stream": np.array([True]),
        "sampling_parameters": text(json.dumps(VLLM_FIELDS)),
        "exclude_input_in_output": np.array([True]),
        "return_finish_reason": np.array([True]),
        "return_cumulative_logprob": np.array([True]),
        "return_num_output_tokens": np.array([True]),
        "return_num_input_tokens": np.array([False]),
        "return_logprobs": np.array([False]),
    }
    parameters = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"}
    responses = stream(server, "llm", arrays, request_id="0", parameters=parameters)
    assert texts(responses) == expected.text
    assert [token for response in responses for token in response["token_ids"]] == list(expected.token_ids)
    assert responses[-1]["finish_reason"].tolist() == [b"length"]
    assert responses[-1]["num_output_tokens"].tolist() == [8]
    assert "num_input_tokens" not in responses[-1]
    scored = client.complete(PROMPT, SamplingParameters(8, 0.8, 40, 0.95, 3), return_log_probs=True)
    sums = [float(response["cumulative_logprob"][0]) for response in responses]
    np.testing.assert_allclose(sums, np.cumsum(scored.log_probs), rtol=1e-5)


def test_parameters_alone_are_enough(server, expected):
    parameters = {"temperature": "0.8", "top_p": "0.95", "top_k": 40, "max_tokens": "8", "seed": 3, "stream": True}
    responses = stream(server, "llm", {"text_input": text(PROMPT)}, ["text_output"], parameters=parameters)
    assert len(responses) == 8
    assert texts(responses) == expected.text


TENSORRT_LLM = {
    "text_input": text(PROMPT, shape=(1, 1)),
    "max_tokens": np.array([[8]], np.int32),
    "stream": np.array([[True]]),
    "temperature": np.array([[0.8]], np.float32),
    "top_k": np.array([[40]], np.int32),
    "top_p": np.array([[0.95]], np.float32),
    "random_seed": np.array([[3]], np.uint64),
    "stop_words": text("", shape=(1, 1)),
    "bad_words": text("", shape=(1, 1)),
    "pad_id": np.array([[2]], np.int32),
    "beam_width": np.array([[1]], np.int32),
    "num_return_sequences": np.array([[1]], np.int32),
    "repetition_penalty": np.array([[1.0]], np.float32),
    "presence_penalty": np.array([[0.0]], np.float32),
    "frequency_penalty": np.array([[0.0]], np.float32),
    "length_penalty": np.array([[1.0]], np.float32),
    "return_log_probs": np.array([[True]]),
    "return_context_logits": np.array([[False]]),
    "return_generation_logits": np.array([[False]]),
    "exclude_input_in_output": np.array([[True]]),
}


@pytest.fixture
def expected_of_tensors(client):
    """The same, with the numbers as float32 has them."""
    temperature, top_p = float(np.float32(0.8)), float(np.float32(0.95))
    sampling = SamplingParameters(max_tokens=8, temperature=temperature, top_p=top_p, top_k=40, seed=3)
    return client.complete(PROMPT, sampling, return_log_probs=True)


def test_a_client_of_tensorrt_llm_by_grpc(server, expected_of_tensors):
    outputs = ["text_output", "cum_log_probs", "output_log_probs"]
    responses = stream(server, "ensemble", TENSORRT_LLM, outputs, request_id="1")
    assert len(responses) == 8
    assert texts(responses) == expected_of_tensors.text
    assert responses[0]["text_output"].shape == (1, 1)
    log_probs = [float(response["output_log_probs"][0, 0]) for response in responses]
    np.testing.assert_allclose(log_probs, expected_of_tensors.log_probs, rtol=1e-5)
    sums = [float(response["cum_log_probs"][0, 0]) for response in responses]
    np.testing.assert_allclose(sums, np.cumsum(expected_of_tensors.log_probs), rtol=1e-5)


def test_its_names_are_known_without_a_batch_too(server, expected_of_tensors):
    arrays = {name: array.reshape(array.shape[1:]) for name, array in TENSORRT_LLM.items()}
    (response,) = stream(server, "llm", arrays | {"stream": np.array([False])})
    assert response["token_ids"].tolist() == list(expected_of_tensors.token_ids)


def test_the_prompt_comes_back_where_it_is_not_excluded(server, expected_of_tensors):
    arrays = TENSORRT_LLM | {"exclude_input_in_output": np.array([[False]]), "stream": np.array([[False]])}
    (response,) = stream(server, "ensemble", arrays, ["text_output"])
    assert texts([response]) == PROMPT + expected_of_tensors.text


def test_stop_words_and_an_end_token_end_the_text(server, client):
    whole = client.complete(PROMPT, SamplingParameters(max_tokens=20))
    stop = whole.text[10:14]
    arrays = {"text_input": text(PROMPT, shape=(1, 1)), "max_tokens": np.array([[20]], np.int32)}
    (response,) = stream(server, "ensemble", arrays | {"stop_words": text("\x00", stop, shape=(1, 2))})
    assert texts([response]) == whole.text[: whole.text.index(stop)]
    end = whole.token_ids[-1]
    (response,) = stream(
        server,
        "llm",
        {name: array[0] for name, array in arrays.items()} | {"end_id": np.array([end], np.int32)},
    )
    assert response["token_ids"].tolist() == list(whole.token_ids[: whole.token_ids.index(end)])
    assert response["finish_reason"].tolist() == [b"stop"]


@pytest.mark.parametrize("model", ["llm", "ensemble"])
def test_clients_by_http(server, client, model):
    expected = client.complete(PROMPT, SamplingParameters(max_tokens=5)).text
    fields = {"text_input": PROMPT, "max_tokens": 5, "bad_words": "", "stop_words": "", "pad_id": 2, "beam_width": 1}
    assert post(server, model, fields)[1]["text_output"] == expected
    status, events = post(server, model, fields | {"stream": True}, "generate_stream")
    assert (status, len(events)) == (200, 5)
    assert "".join(event["text_output"] for event in events) == expected


def test_a_client_of_vllm_by_http(server, client):
    expected = client.complete(PROMPT, SamplingParameters(max_tokens=5)).text
    inner = {"stream": False, "temperature": 0, "exclude_input_in_output": True, "max_tokens": 5, "n": 1}
    assert post(server, "llm", {"text_input": PROMPT, "parameters": inner})[1]["text_output"] == expected
    fields = {"text_input": PROMPT, "sampling_parameters": json.dumps({"max_tokens": "5", "top_k": "-1"})}
    assert post(server, "llm", fields)[1]["text_output"] == expected
    assert post(server, "llm", {"text_input": PROMPT, "max_tokens": 5, "top_k": -1, "n": "1"})[0] == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_token": 5}, "there is no parameter 'max_token'"),
        ({"parameters": {"max_token": 5}}, "there is no parameter 'max_token'"),
        ({"n": 65}, "n must be between 1 and 64"),
        ({"best_of": "3"}, "best_of is not supported"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between 0.01 and 100"),
        ({"bad_words": ["x"]}, "bad_words is not supported"),
        ({"max_tokens": 3_000_000_000}, "max_tokens must be between"),
        ({"max_tokens": -1}, "max_tokens must be between"),
        ({"temperature": 1e300}, "temperature must be finite"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"end_id": -1}, "end_id must be a token id"),
    ],
)
def test_what_is_not_done_is_refused_by_name_over_http(server, fields, message):
    for model in ("llm", "ensemble"):
        status, body = post(server, model, {"text_input": PROMPT} | fields)
        assert status == 400
        assert message in body


@pytest.mark.parametrize(
    ("arrays", "parameters", "message"),
    [
        ({}, {"max_token": "5"}, "INVALID_ARGUMENT: there is no parameter 'max_token'"),
        ({}, {"stop": "x", "echo": True}, "INVALID_ARGUMENT: there is no parameter 'echo'"),
        ({}, {"best_of": 2}, "INVALID_ARGUMENT: best_of is not supported: leave it out, or give 1, not 2"),
        ({}, {"top_p": "high"}, "INVALID_ARGUMENT: top_p must be a number, not 'high'"),
        ({"sampling_parameters": text('{"logprobs": 50}')}, {}, "INVALID_ARGUMENT: top_logprobs must be between 0 and"),
        ({"beam_width": np.array([4], np.int32)}, {}, "INVALID_ARGUMENT: beam_width is not supported"),
        ({"return_context_logits": np.array([True])}, {}, "INVALID_ARGUMENT: return_context_logits is not supported"),
        ({"presence_penalty": np.array([3], np.float32)}, {}, "INVALID_ARGUMENT: presence_penalty must be between -2"),
        ({"no_such_input": np.array([1])}, {}, "unexpected inference input 'no_such_input'"),
    ],
)
def test_what_is_not_done_is_refused_by_name_over_grpc(server, arrays, parameters, message):
    with pytest.raises(InferenceServerException, match=message):
        stream(server, "llm", {"text_input": text(PROMPT)} | arrays, parameters=parameters)


def test_several_completions_of_a_prompt(client):
    sampling = SamplingParameters(max_tokens=12, temperature=1, seed=3, n=3)
    together = client.complete_all(PROMPT, sampling)
    assert [chunk.index for chunk in together] == [0, 1, 2]
    assert len({chunk.token_ids for chunk in together}) == 3
    for index, chunk in enumerate(together):
        alone = client.complete(PROMPT, SamplingParameters(max_tokens=12, temperature=1, seed=3 + index))
        assert (chunk.text, chunk.token_ids) == (alone.text, alone.token_ids)


def test_several_completions_come_as_one_response_where_nothing_streams(server, client):
    fields = {"text_input": PROMPT, "max_tokens": 6, "temperature": 1, "n": 3, "seed": 3}
    status, body = post(server, "llm", fields)
    sampling = SamplingParameters(max_tokens=6, temperature=1, seed=3, n=3)
    assert status == 200
    assert body["text_output"] == [chunk.text for chunk in client.complete_all(PROMPT, sampling)]
    assert body["sequence_index"] == [0, 1, 2]
    assert body["num_output_tokens"] == [6, 6, 6]


def test_the_most_likely_tokens_come_with_their_log_probabilities(server, client):
    sampling = SamplingParameters(max_tokens=4, top_logprobs=3)
    chunk = client.complete(PROMPT, sampling, return_log_probs=True)
    assert [top[0] for top in chunk.top_log_probs] == list(zip(chunk.token_ids, chunk.log_probs, strict=True))
    assert [len(top) for top in chunk.top_log_probs] == [3] * 4
    fields = {"text_input": PROMPT, "max_tokens": 1, "logprobs": 2, "prompt_logprobs": 1}
    body = post(server, "llm", fields)[1]
    assert len(body["top_token_ids"]) == 2
    assert len(body["prompt_log_probs"]) == body["num_input_tokens"] - 1
    assert len(body["prompt_top_token_ids"]) == 2 * len(body["prompt_log_probs"])
    assert len(body["prompt_token_ids"]) == body["num_input_tokens"]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": "[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
        ({"json_schema": '{"enum": ["red", "green"]}'}, '"(red|green)"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}}, "7"),
        ({"grammar": 'start: "a" "b"'}, "ab"),
    ],
)
def test_structured_output(server, fields, pattern):
    for temperature in (0, 1):
        request = {"max_tokens": 40, "temperature": temperature} | fields
        body = post(server, "llm", {"text_input": PROMPT, "sampling_parameters": json.dumps(request)})[1]
        assert body["finish_reason"] == "stop"
        assert re.fullmatch(pattern, body["text_output"]), body


def test_a_structure_that_cannot_be_read_is_refused(server):
    for fields, message in (({"regex": "(("}, "regex: "), ({"json_schema": "{"}, "json_schema: ")):
        status, body = post(server, "llm", {"text_input": PROMPT} | fields)
        assert status == 400
        assert message in body


def test_without_max_tokens_a_completion_goes_on_to_the_end_of_the_context(client):
    answer = client.complete(np.ones(4090, np.int32))
    assert (answer.num_output_tokens, answer.finish_reason) == (6, "length")


def test_the_models_figures_are_among_tritons_metrics(server, client):
    def figures():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {
            line.split("{")[0].split()[0]: float(line.split()[-1]) for line in lines if line.startswith("hebbline_")
        }

    def settled(name, least):
        deadline = time.monotonic() + 10
        while figures()[name] < least and time.monotonic() < deadline:
            time.sleep(0.1)
        return figures()[name]

    before = None
    while before != (before := figures()):
        time.sleep(1.2)  # what earlier tests did is published by then
    for _ in range(2):
        client.complete(np.arange(1, 101, dtype=np.int32), SamplingParameters(max_tokens=3))
    with pytest.raises(InputError):
        client.complete(PROMPT, SamplingParameters(max_tokens=5000))
    name = "hebbline_requests_refused_invalid_total"
    assert settled(name, before[name] + 1) == before[name] + 1
    after = figures()
    gained = {name: after[name] - before[name] for name in after}
    assert gained["hebbline_generated_tokens_total"] == 6
    assert gained["hebbline_requests_finished_total"] == 2
    assert gained["hebbline_prefix_tokens_found_total"] == 96
    assert gained["hebbline_prompt_tokens_total"] == 100 + 4
    assert after["hebbline_running"] == after["hebbline_cache_blocks_used"] == 0
    assert after["hebbline_cache_blocks_kept"] > 0


def test_a_flood_on_one_connection_delays_another_by_little(server, client):
    """Triton itself refuses what is beyond its queue; each would take the model's process a millisecond or two."""
    message = infer_request({"text_input": text(PROMPT), "max_tokens": np.array([20], np.int32)}, ["text_output"])
    ended = threading.Event()

    def flood():
        yield from [message] * 5000
        ended.wait(30)

    with grpc.insecure_channel(server.grpc_url) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(flood())
        refusals = [next(call).error_message for _ in range(4000)]
        assert sum("Exceeds maximum queue size" in message for message in refusals) > 1000
        ended.set()
        call.cancel()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert client.complete(PROMPT, SamplingParameters(max_tokens=2)).num_output_tokens == 2
            break
        except CheckError:
            time.sleep(0.1)
    else:
        pytest.fail("the server does not recover from a flood")
