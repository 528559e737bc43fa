"""A client of the served model: completions as they come, whole ones, and scores, over gRPC.

One call of `ModelStreamInfer` is one request, so that ending the call is cancelling the request, and the call's
status is the request's.
"""

import time
from collections.abc import Generator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..artifacts import CheckError, InputError
from .generation import Chunk, join_chunks
from .parameters import SamplingParameters
from .triton.model_states import ModelState
from .triton.protocol import INVALID_ARGUMENT
from .triton.settings import MODEL_NAME
from .wire import (
    CHANNEL_OPTIONS,
    UNKNOWN_MODEL_WORDS,
    Prompt,
    infer_request,
    read_chunk,
    read_state,
    request_message,
    state_request,
)

_RETRY_SECONDS = 0.1
_STATE_SECONDS = 2.0
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Client:
    """A connection to one model of a Triton server; usable from several threads, and as a context manager.

    Errors of every method: InputError where the server is not there or refuses an argument, in its own words;
    CheckError where it fails, is too busy, goes away, or does not answer in time.

    Args:
        url: host:port of the server's gRPC service; "grpc://" may stand before it.
        timeout: seconds that one request may take in all.
        model: its name on the server.
        credentials: for a server with TLS, see `hebbline.serve.tls`; None: none.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 600.0,
        model: str = MODEL_NAME,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.url = url.removeprefix("grpc://")
        self.model = model
        self._timeout = timeout
        if credentials is None:
            self._channel = grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(self.url, credentials, options=CHANNEL_OPTIONS)
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
            raise CheckError(f"the server at {self.url} is up, but its model '{self.model}' is not ready")

    def wait_loaded(self, version: int, timeout: float) -> None:
        """Wait until the server has followed a version of its list of models, by which it loads or unloads this one.

        Raises:
            CheckError: it has not after `timeout` seconds, or the model could not be loaded; the message says why.
        """
        deadline = time.monotonic() + timeout
        while (told := self._told(version)) is None or told.state == "loading" or self._is_leaving(told, deadline):
            if time.monotonic() > deadline:
                raise CheckError(f"the model '{self.model}' is not there after {timeout:.0f} s: see the server's log")
            time.sleep(_RETRY_SECONDS)
        if told.state == "failed":
            raise CheckError(told.reason)
        if told.state == "loaded":
            self._check_loaded()

    def _told(self, version: int) -> ModelState | None:
        """What the server tells of the model; None where it has not come to that version, or is being replaced."""
        try:
            told = read_state(self._stub.ModelInfer(state_request(self.model), timeout=_STATE_SECONDS))
        except grpc.RpcError as error:
            if error.code() in _GONE:
                return None
            raise self._translated(error) from error
        return told if told.version >= version else None

    def _is_leaving(self, told: ModelState, deadline: float) -> bool:
        """Whether the model is to be unloaded, and still takes requests."""
        return told.state == "unloaded" and self._is_ready(deadline) is not False

    def _check_loaded(self) -> None:
        """Send nothing at all: a model that was loaded refuses that, one that could not be says why."""
        try:
            self._only_chunk(infer_request({}, ["text_output"], self.model))
        except InputError:
            return

    def _is_ready(self, deadline: float) -> bool | None:
        """Whether the model is; None where the server went while it was asked, as one does that is to be replaced."""
        request = service_pb2.ModelReadyRequest(name=self.model)
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
        """Generate, a chunk at a time; the last of each completion has the `finish_reason`.

        With `n` above 1 the completions' chunks come in any order, told apart by their `index`. Closing the iterator
        cancels the request.
        """
        arguments: dict[str, Any] = {"stream": True}
        if return_log_probs:
            arguments["return_log_probs"] = True
        sampling = sampling or SamplingParameters()
        return self._chunks(request_message(prompt, sampling, arguments, model=self.model), sampling.n)

    def complete(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, *, return_log_probs: bool = False
    ) -> Chunk:
        """Generate, and return all of it as one chunk; of several completions (`n`) the first."""
        return self.complete_all(prompt, sampling, return_log_probs=return_log_probs)[0]

    def complete_all(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, *, return_log_probs: bool = False
    ) -> list[Chunk]:
        """Generate all `n` completions of the prompt; returns each as one chunk, in the order of their index."""
        whole: dict[int, Chunk] = {}
        for chunk in self.stream(prompt, sampling, return_log_probs=return_log_probs):
            whole[chunk.index] = join_chunks(whole.get(chunk.index), chunk)
        return [whole[index] for index in sorted(whole)]

    def log_probs(self, prompt: Prompt) -> NDArray[np.float64]:
        """Natural-log probability of each of the prompt's T tokens after the first, given those before; [T - 1]."""
        scores = {"return_prompt_log_probs": True}
        request = request_message(prompt, SamplingParameters(max_tokens=0), scores, model=self.model)
        return np.array(self._only_chunk(request).prompt_log_probs, np.float64)

    def _only_chunk(self, request: service_pb2.ModelInferRequest) -> Chunk:
        (chunk,) = self._chunks(request)
        return chunk

    def _chunks(self, request: service_pb2.ModelInferRequest, completions: int = 1) -> Generator[Chunk, None, None]:
        """The chunks of one request; the last comes when the server has ended the call.

        Triton 2.51 can crash where a call is cancelled in the moment in which it ends, and where a stream asks for
        errors as gRPC statuses: so a finished call is read to its end, and errors come as text with a code before it.
        """
        last: Chunk | None = None
        open_completions = completions
        failure: str | None = None
        call = self._stub.ModelStreamInfer(iter([request]), timeout=self._timeout)
        try:
            for response in call:
                if response.error_message:
                    failure = response.error_message
                elif response.infer_response.outputs:
                    last = read_chunk(response.infer_response)
                    open_completions -= last.finish_reason is not None
                    if open_completions > 0:
                        yield last
        except grpc.RpcError as error:
            raise self._translated(error, has_answered=last is not None) from error
        finally:
            call.cancel()
        if failure is not None:
            raise self._refused(failure)
        if last is None or open_completions > 0:
            raise CheckError(f"the server at {self.url} ended the request before it was finished")
        yield last

    def _translated(self, error: grpc.RpcError, has_answered: bool = False) -> Exception:
        code, details = error.code(), error.details()
        if has_answered and code == grpc.StatusCode.UNAVAILABLE:
            return CheckError(f"the server at {self.url} ended during the request: {details}")
        if code in _GONE and not self._is_reachable():
            return InputError(f"no server answers at {self.url}: is `hebbline serve` running there?")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CheckError(f"the server at {self.url} did not answer in time")
        return CheckError(f"the server at {self.url} failed: {details} ({code.name})")

    def _refused(self, message: str) -> Exception:
        code, _, words = message.partition(": ")
        if code == INVALID_ARGUMENT:
            return InputError(words)
        if any(words in message for words in UNKNOWN_MODEL_WORDS):
            return InputError(f"the server at {self.url} has no model '{self.model}' loaded")
        return CheckError(f"the server at {self.url} failed: {message}")

    def _is_reachable(self) -> bool:
        try:
            return self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=2).live
        except grpc.RpcError:
            return False
