"""A client of the served model: completions as they come, whole ones, and scores, over gRPC.

One call of `ModelStreamInfer` carries one request, so that ending the call is cancelling the request, and the call's
status is the request's.
"""

import json
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from ..artifacts import CheckError, InputError
from .generation import Chunk
from .sampling import SamplingParameters
from .triton.protocol import INVALID_ARGUMENT
from .triton.settings import MODEL_NAME

Prompt = str | Sequence[int]
"""A prompt as text or as tokens."""

MAX_MESSAGE_BYTES = 64 << 20
# Notice within seconds that the server's machine has gone. (A server that only exits resets the connection at once.)
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_RETRY_SECONDS = 0.1
_ALWAYS = ("text_output", "token_ids", "finish_reason", "num_input_tokens", "num_output_tokens")


class Client:
    """A connection to the model `llm` of a Triton server; usable from several threads, and as a context manager.

    Errors of every method: InputError where the server is not there or refuses an argument, in its own words;
    CheckError where it fails, is too busy, goes away, or does not answer in time.

    Args:
        url: host:port of the server's gRPC service.
        timeout: seconds that one request may take in all.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.url = url
        self._timeout = timeout
        self._channel = grpc.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; open requests are cancelled."""
        self._channel.close()

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until the model is ready; raises InputError where no server answers in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (ready := self._is_ready(deadline)) is None:
            time.sleep(_RETRY_SECONDS)
        if not ready:
            raise CheckError(f"the server at {self.url} is up, but its model '{MODEL_NAME}' is not ready")

    def _is_ready(self, deadline: float) -> bool | None:
        """Whether the model is; None where the server went while it was asked, as one does that is to be replaced."""
        request = service_pb2.ModelReadyRequest(name=MODEL_NAME)
        try:
            left = max(0.0, deadline - time.monotonic())
            return bool(self._stub.ModelReady(request, timeout=left, wait_for_ready=True).ready)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and time.monotonic() < deadline:
                return None
            raise self._translated(error) from error

    def stream(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, *, return_log_probs: bool = False
    ) -> Generator[Chunk, None, None]:
        """Generate, a chunk at a time; the last has the `finish_reason`. Closing the iterator cancels the request."""
        arguments: dict[str, Any] = {"stream": True}
        if return_log_probs:
            arguments["return_log_probs"] = True
        return self._chunks(self._request(prompt, sampling, arguments))

    def complete(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, *, return_log_probs: bool = False
    ) -> Chunk:
        """Generate, and return all of it as one chunk."""
        arguments = {"return_log_probs": True} if return_log_probs else {}
        return self._only_chunk(self._request(prompt, sampling, arguments))

    def log_probs(self, prompt: Prompt) -> NDArray[np.float64]:
        """Natural-log probability of each of the prompt's T tokens after the first, given those before; [T - 1]."""
        request = self._request(prompt, SamplingParameters(max_tokens=0), {"return_prompt_log_probs": True})
        return np.array(self._only_chunk(request).prompt_log_probs, np.float64)

    def _only_chunk(self, request: service_pb2.ModelInferRequest) -> Chunk:
        return list(self._chunks(request))[-1]

    def _chunks(self, request: service_pb2.ModelInferRequest) -> Generator[Chunk, None, None]:
        """The chunks of one request; the last comes when the server has ended the call.

        Triton 2.51 can crash where a call is cancelled in the moment in which it ends, and where a stream asks for
        errors as gRPC statuses: so a finished call is read to its end, and errors come as text with a code before it.
        """
        chunk: Chunk | None = None
        failure: str | None = None
        call = self._stub.ModelStreamInfer(iter([request]), timeout=self._timeout)
        try:
            for response in call:
                if response.error_message:
                    failure = response.error_message
                elif response.infer_response.outputs:
                    chunk = _chunk(response.infer_response)
                    if chunk.finish_reason is None:
                        yield chunk
        except grpc.RpcError as error:
            raise self._translated(error, has_answered=chunk is not None) from error
        finally:
            call.cancel()
        if failure is not None:
            raise self._refused(failure)
        if chunk is None or chunk.finish_reason is None:
            raise CheckError(f"the server at {self.url} ended the request before it was finished")
        yield chunk

    def _request(
        self, prompt: Prompt, sampling: SamplingParameters | None, arguments: dict[str, Any]
    ) -> service_pb2.ModelInferRequest:
        if not len(prompt):
            raise InputError("the prompt is empty: it takes at least one token")
        tensors = {name: np.array([value]) for name, value in arguments.items()}
        if isinstance(prompt, str):
            tensors["text_input"] = np.array([prompt.encode()], dtype=object)
        else:
            tensors["input_ids"] = _token_ids(prompt)
        # JSON keeps every digit of a number, where a tensor of its own would round it to 32 bits.
        parameters = json.dumps(asdict(sampling or SamplingParameters()))
        tensors["sampling_parameters"] = np.array([parameters.encode()], dtype=object)
        wanted = list(_ALWAYS)
        wanted += ["log_probs"] if "return_log_probs" in arguments else []
        wanted += ["prompt_log_probs"] if "return_prompt_log_probs" in arguments else []
        return _infer_request(tensors, wanted)

    def _translated(self, error: grpc.RpcError, has_answered: bool = False) -> Exception:
        code, details = error.code(), error.details()
        if has_answered and code == grpc.StatusCode.UNAVAILABLE:
            return CheckError(f"the server at {self.url} ended during the request: {details}")
        gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        if code in gone and not self._is_reachable():
            return InputError(f"no server answers at {self.url}: is `hebbline serve` running there?")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CheckError(f"the server at {self.url} did not answer in time")
        return CheckError(f"the server at {self.url} failed: {details} ({code.name})")

    def _refused(self, message: str) -> Exception:
        code, _, words = message.partition(": ")
        if code == INVALID_ARGUMENT:
            return InputError(words)
        return CheckError(f"the server at {self.url} failed: {message}")

    def _is_reachable(self) -> bool:
        try:
            return self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=2).live
        except grpc.RpcError:
            return False


def _infer_request(tensors: dict[str, NDArray], wanted: list[str]) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        is_bytes = array.dtype == np.object_
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if is_bytes else array.tobytes())
    for name in wanted:
        request.outputs.add(name=name)
    return request


def _token_ids(prompt: Sequence[int]) -> NDArray[np.int32]:
    try:
        return np.array(prompt, np.int32).reshape(-1)
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"input_ids must be integers of 32 bits: {error}") from error


def _chunk(response: service_pb2.ModelInferResponse) -> Chunk:
    result = InferResult(response)
    arrays = {output.name: result.as_numpy(output.name).tolist() for output in response.outputs}
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
    )
