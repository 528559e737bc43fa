"""Requests and answers of the model as gRPC sends them: what the clients, synchronous and not, have in common."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from ..artifacts import InputError
from .generation import Chunk, TopLogProbs
from .parameters import SamplingParameters
from .triton.model_states import ModelState
from .triton.settings import CONTROL_NAME, MODEL_NAME

Prompt = str | Sequence[int]
"""A prompt as text or as tokens."""

MAX_MESSAGE_BYTES = 64 << 20
# Notice within seconds that the server's machine has gone. (A server that only exits resets the connection at once.)
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that is restarted is found within a third of a second, and not after pauses that grow to minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
)
UNKNOWN_MODEL_WORDS = ("Request for unknown model", "is not at ready state")
"""By which an error of Triton's says that it has no such model, or has it no longer."""


class Options(TypedDict, total=False):
    """What the asynchronous client is asked beside prompt and sampling.

    Attributes:
        return_log_probs, return_prompt_log_probs: score what is generated, and the prompt.
        timeout: seconds for all of it; None: the client's own.
        client: whom the request is from, for a fair order among those who wait.
    """

    return_log_probs: bool
    return_prompt_log_probs: bool
    timeout: float | None
    client: str


_FORMATS: dict[str, Literal["i", "f"]] = {"INT32": "i", "FP32": "f"}
_LENGTH = struct.Struct("<I")
_ALWAYS = (
    "text_output",
    "token_ids",
    "finish_reason",
    "num_input_tokens",
    "num_output_tokens",
    "queue_seconds",
    "prompt_seconds",
)
_LOG_PROBS = ("log_probs", "cumulative_logprob", "top_token_ids", "top_log_probs")
_PROMPT_LOG_PROBS = ("prompt_log_probs", "prompt_top_token_ids", "prompt_top_log_probs")


def request_message(
    prompt: Prompt,
    sampling: SamplingParameters | None,
    arguments: Mapping[str, Any],
    client: str = "",
    model: str = MODEL_NAME,
) -> service_pb2.ModelInferRequest:
    """A request for a model.

    Args:
        prompt: at least one token.
        sampling: None: greedy, and as many tokens as fit.
        arguments: the request's flags by name.
        client: whom it is from, for a fair order among those who wait.
        model: its name on the server.

    Raises:
        InputError: the prompt is empty, or has a token of more than 32 bits.
    """
    if not len(prompt):
        raise InputError("the prompt is empty: it takes at least one token")
    tensors = {name: np.array([value]) for name, value in arguments.items()}
    if isinstance(prompt, str):
        tensors["text_input"] = np.array([prompt.encode()], dtype=object)
    else:
        tensors["input_ids"] = _token_ids(prompt)
    if client:
        tensors["client"] = np.array([client.encode()], dtype=object)
    # JSON keeps every digit of a number, where a tensor of its own would round it to 32 bits.
    parameters = json.dumps(asdict(sampling or SamplingParameters()))
    tensors["sampling_parameters"] = np.array([parameters.encode()], dtype=object)
    wanted = list(_ALWAYS)
    if sampling is not None and sampling.n > 1:  # each output costs in each response
        wanted.append("sequence_index")
    wanted += _LOG_PROBS if "return_log_probs" in arguments else []
    wanted += _PROMPT_LOG_PROBS if "return_prompt_log_probs" in arguments else []
    return infer_request(tensors, wanted, model)


def infer_request(
    tensors: dict[str, NDArray], wanted: list[str], model: str = MODEL_NAME
) -> service_pb2.ModelInferRequest:
    """The message that asks a served model for the outputs `wanted`, of inputs by their names."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        is_bytes = array.dtype == np.object_
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if is_bytes else array.tobytes())
    for name in wanted:
        request.outputs.add(name=name)
    return request


def state_request(model: str) -> service_pb2.ModelInferRequest:
    """The message that asks a server what has become of a further model."""
    named = {"model": np.array([model.encode()], dtype=object)}
    return infer_request(named, ["version", "state", "reason"], CONTROL_NAME)


def read_state(response: service_pb2.ModelInferResponse) -> ModelState:
    """What the server tells of a model."""
    result = InferResult(response)
    version, state, reason = (result.as_numpy(name)[0] for name in ("version", "state", "reason"))
    return ModelState(int(version), state.decode(), reason.decode())


def _token_ids(prompt: Sequence[int]) -> NDArray[np.int32]:
    try:
        return np.array(prompt, np.int32).reshape(-1)
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"input_ids must be integers of 32 bits: {error}") from error


def read_chunk(response: service_pb2.ModelInferResponse) -> Chunk:
    """The chunk that is in a response; it has all of the outputs that `request_message` asks for."""
    arrays = dict(zip((output.name for output in response.outputs), _values(response), strict=True))
    reason = arrays.get("finish_reason")
    prompt_log_probs = arrays.get("prompt_log_probs")
    return Chunk(
        text=arrays["text_output"][0].decode(),
        token_ids=tuple(arrays["token_ids"]),
        log_probs=tuple(arrays.get("log_probs", ())),
        finish_reason=reason[0].decode() if reason else None,
        num_input_tokens=arrays.get("num_input_tokens", [0])[0],
        num_output_tokens=arrays.get("num_output_tokens", [0])[0],
        prompt_log_probs=None if prompt_log_probs is None else tuple(prompt_log_probs),
        cumulative_log_prob=next(iter(arrays.get("cumulative_logprob", ())), None),
        top_log_probs=_top_log_probs(arrays, "top", len(arrays["token_ids"])),
        prompt_top_log_probs=_top_log_probs(arrays, "prompt_top", len(prompt_log_probs)) if prompt_log_probs else None,
        index=arrays.get("sequence_index", [0])[0],
        queue_seconds=arrays.get("queue_seconds", [0.0])[0],
        prompt_seconds=arrays.get("prompt_seconds", [0.0])[0],
    )


def _values(response: service_pb2.ModelInferResponse) -> Iterator[list[Any]]:
    """The values of each output. There are a few for every token, and Triton's own reader takes ten times as long."""
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        yield (
            _texts(content)
            if output.datatype == "BYTES"
            else memoryview(content).cast(_FORMATS[output.datatype]).tolist()
        )


def _texts(content: bytes) -> list[bytes]:
    """Texts of which each stands after its length, in four bytes."""
    texts, place = [], 0
    while place < len(content):
        (size,) = _LENGTH.unpack_from(content, place)
        place += _LENGTH.size + size
        texts.append(content[place - size : place])
    return texts


def _top_log_probs(arrays: Mapping[str, list[Any]], name: str, places: int) -> tuple[TopLogProbs, ...]:
    """The most likely tokens of each place, from the two tensors in which they stand one after the other."""
    pairs = tuple(zip(arrays.get(f"{name}_token_ids", ()), arrays.get(f"{name}_log_probs", ()), strict=True))
    count = len(pairs) // places if places else 0
    return tuple(pairs[start : start + count] for start in range(0, len(pairs), count)) if count else ()
