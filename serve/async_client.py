"""The client of the served model for asyncio: many requests at a time on one thread, each with its deadline.

A request that the server refused because it was busy, or that no server received, is sent again where time is left. One
that has answered anything is not: its text might differ.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..artifacts import CheckError, InputError
from .client_errors import DeadlineError, NoModelError, ServerBusyError, ServerUnavailableError
from .generation import Chunk, join_chunks
from .parameters import SamplingParameters
from .triton.protocol import INVALID_ARGUMENT
from .triton.settings import MODEL_NAME
from .wire import CHANNEL_OPTIONS, UNKNOWN_MODEL_WORDS, Options, Prompt, read_chunk, request_message

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ENDED = (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN)
"""How a call ends whose server goes while it is at it, beside UNAVAILABLE."""
_CUT_WORDS = ("RST_STREAM", "Internal error from Core")
"""In what gRPC says of a connection that broke in the midst of a call, whichever code it gives it."""
_BUSY_WORDS = ("try again later", "Exceeds maximum queue size")


@dataclass(frozen=True)
class Retries:
    """How often a request is sent again that has answered nothing, and how soon.

    Attributes:
        most: times that it is sent again; 0: never.
        first_seconds: the pause before the first time; it doubles from there, and is drawn between half and all of it.
        longest_seconds: of a pause.
    """

    most: int = 2
    first_seconds: float = 0.1
    longest_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.most < 0 or min(self.first_seconds, self.longest_seconds) < 0:
            raise InputError(f"{self}: nothing can be negative")

    def pause(self, number: int) -> float:
        """Seconds before the sending of this number, from 0."""
        whole = min(self.longest_seconds, self.first_seconds * 2**number)
        return whole * random.uniform(0.5, 1.0)


NO_RETRIES = Retries(most=0)


class AsyncClient:
    """A connection to one model of a Triton server, for one event loop; an asynchronous context manager.

    Errors of every method: InputError where the server refuses an argument, in its own words; ServerBusyError where too
    many wait; ServerUnavailableError where no server is there or it ends; NoModelError where it has no such model;
    DeadlineError; CheckError where it fails.
    Cancelling the task, or closing the iterator, cancels the request on the server.

    Args:
        url: host:port of the server's gRPC service.
        timeout: seconds that a request may take in all, retries included, where the call names no others.
        retries: of requests that have answered nothing.
        credentials: for a server with TLS, see `hebbline.serve.tls`; None: none.
        model: its name on the server.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 600.0,
        retries: Retries | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        model: str = MODEL_NAME,
    ) -> None:
        self.url = url
        self.model = model
        self._timeout = timeout
        self._retries = retries or Retries()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(url, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(url, credentials, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open requests are cancelled."""
        await self._channel.close()

    async def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until the server calls its model ready; ServerUnavailableError where it never does."""
        deadline = time.monotonic() + timeout
        request = service_pb2.ModelReadyRequest(name=self.model)
        ready = False
        while not ready:
            left = deadline - time.monotonic()
            try:
                ready = (await self._stub.ModelReady(request, timeout=max(0.0, left), wait_for_ready=True)).ready
            except grpc.aio.AioRpcError as error:
                if left <= 0 or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise ServerUnavailableError(f"no model is ready at {self.url}: {error.details()}") from error
            if not ready:
                if left <= 0:
                    raise ServerUnavailableError(f"the model '{self.model}' at {self.url} is not ready")
                await asyncio.sleep(0.1)

    async def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        **options: "Unpack[Options]",
    ) -> AsyncGenerator[Chunk, None]:
        """Generate, a chunk at a time; the last of each completion has the `finish_reason`.

        With `n` above 1 the completions' chunks come in any order, told apart by their `index`.
        """
        async with aclosing(self._answers(prompt, sampling or SamplingParameters(), True, options)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, **options: "Unpack[Options]"
    ) -> Chunk:
        """Generate, and return all of it as one chunk; of several completions (`n`) the first."""
        return (await self.complete_all(prompt, sampling, **options))[0]

    async def complete_all(
        self, prompt: Prompt, sampling: SamplingParameters | None = None, **options: "Unpack[Options]"
    ) -> list[Chunk]:
        """Generate all `n` completions of the prompt; returns each as one chunk, in the order of their index."""
        whole: dict[int, Chunk] = {}
        sampling = sampling or SamplingParameters()
        # Of a single completion the model sends one message instead of one for each token.
        async with aclosing(self._answers(prompt, sampling, sampling.n > 1, options)) as chunks:
            async for chunk in chunks:
                whole[chunk.index] = join_chunks(whole.get(chunk.index), chunk)
        return [whole[index] for index in sorted(whole)]

    async def log_probs(self, prompt: Sequence[int] | str) -> tuple[float, ...]:
        """Natural-log probability of each of the prompt's T tokens after the first, given those before; T - 1."""
        nothing_new = SamplingParameters(max_tokens=0)
        chunk = await self.complete(prompt, nothing_new, return_prompt_log_probs=True)
        return chunk.prompt_log_probs or ()

    async def is_ready(self, timeout: float = 2.0) -> bool:
        """Whether the server calls its model ready; False where no server answers in `timeout` seconds."""
        try:
            request = service_pb2.ModelReadyRequest(name=self.model)
            return bool((await self._stub.ModelReady(request, timeout=timeout)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def _answers(
        self, prompt: Prompt, sampling: SamplingParameters, stream: bool, options: Options
    ) -> AsyncGenerator[Chunk, None]:
        request = request_message(prompt, sampling, _flags(stream, options), options.get("client", ""), self.model)
        timeout = options.get("timeout")
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        for attempt in range(self._retries.most + 1):
            has_answered = False
            try:
                async with aclosing(self._chunks(request, sampling.n, deadline - time.monotonic())) as chunks:
                    async for chunk in chunks:
                        has_answered = True
                        yield chunk
                return
            except (ServerBusyError, ServerUnavailableError):
                pause = self._retries.pause(attempt)
                if has_answered or attempt == self._retries.most or time.monotonic() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _chunks(
        self, request: service_pb2.ModelInferRequest, completions: int, seconds: float
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one sending. As in the other client, a call that is finished is read to its end."""
        chunk: Chunk | None = None
        failure: str | None = None
        try:
            call = self._stub.ModelStreamInfer(_only(request), timeout=max(0.0, seconds))
        except grpc.aio.UsageError as error:
            raise ServerUnavailableError(f"the connection to the server at {self.url} is closed") from error
        try:
            async for response in call:
                if response.error_message:
                    failure = response.error_message
                elif response.infer_response.outputs:
                    chunk = read_chunk(response.infer_response)
                    completions -= chunk.finish_reason is not None
                    if completions > 0:
                        yield chunk
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()
        if failure is not None:
            raise self._refused(failure)
        if chunk is None or completions > 0:
            raise ServerUnavailableError(f"the server at {self.url} ended the request before it was finished")
        yield chunk

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"the server at {self.url} did not answer in time")
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailableError(f"no server answers at {self.url}: {details}")
        if code in _ENDED or any(words in (details or "") for words in _CUT_WORDS):
            return ServerUnavailableError(f"the server at {self.url} ended the request: {details}")
        return CheckError(f"the server at {self.url} failed: {details} ({code.name})")

    def _refused(self, message: str) -> Exception:
        code, _, words = message.partition(": ")
        if code == INVALID_ARGUMENT:
            return InputError(words)
        if any(words in message for words in UNKNOWN_MODEL_WORDS):
            return NoModelError(f"the server at {self.url} has no model '{self.model}' loaded")
        if any(word in message for word in _BUSY_WORDS):
            return ServerBusyError(f"the server at {self.url} is busy: {words or message}")
        if code in ("UNAVAILABLE", "CANCELLED") or "is not healthy" in message:
            return ServerUnavailableError(f"the server at {self.url} cannot serve: {words or message}")
        return CheckError(f"the server at {self.url} failed: {message}")


def _flags(stream: bool, options: Options) -> dict[str, Any]:
    wanted = {
        "stream": stream,
        "return_log_probs": options.get("return_log_probs", False),
        "return_prompt_log_probs": options.get("return_prompt_log_probs", False),
    }
    return {name: True for name, value in wanted.items() if value}


async def _only(request: service_pb2.ModelInferRequest) -> AsyncGenerator[service_pb2.ModelInferRequest, None]:
    yield request
