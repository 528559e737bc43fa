"""The model inside Triton's Python backend. Importable there only: `triton_python_backend_utils` exists in its stub.

Triton's own thread calls `execute`, the intake's read and tokenize, the scheduler's makes tokens, and the responder's
sends them. Only the responder touches Triton's response senders, so a slow client costs the other requests no time in
the model; neither does a long prompt.
"""

import queue
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ...artifacts import InputError
from ..engine.tensorrt import open_runner
from ..generation import CANCELLED, Chunk, join_chunks
from ..scheduler import Event, Failure, QueueFullError, Scheduler, Ticket, UnavailableError
from ..tokenizer import load_tokenizer
from .graph_choice import open_chosen
from .intake import Intake
from .lifeline import watch_lifeline
from .protocol import INVALID_ARGUMENT, ParsedRequest, RequestReader, response_tensors
from .settings import Settings

CANCEL_POLL_SECONDS = 0.02


class Backend:
    """The artifact's runner and scheduler, the intake, and the responder."""

    def __init__(self, artifact: Path, settings: Settings) -> None:
        threads = settings.threads or None
        runner = open_runner(artifact, settings.slots, threads, settings.kv, open_onnx=open_chosen)
        tokenizer = load_tokenizer(artifact)
        self._reader = RequestReader(tokenizer, runner.context_length, runner.vocab_size)
        self._scheduler = Scheduler(runner, tokenizer, runner.facts.eos_token_ids, max_waiting=settings.max_waiting)
        self._intake = Intake(settings.slots + settings.max_waiting)
        self._responder = Responder()
        watch_lifeline(
            on_shutdown=lambda: self._scheduler.close(settings.drain_seconds),
            has_failed=lambda: self._scheduler.failed,
        )

    def execute(self, requests: list[Any]) -> None:
        """Take requests; everything that is wrong with one is its own last response."""
        for request in requests:
            reply = Reply(request.get_response_sender(), frozenset(request.requested_output_names()))
            try:
                self._intake.put(partial(self._submit, request, reply))
            except Exception as error:
                self._responder.put(reply, Failure(error))

    def close(self) -> None:
        """End the open requests and all threads."""
        self._intake.close()
        self._scheduler.close()
        self._responder.close()

    def _submit(self, request: Any, reply: "Reply") -> None:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            reply.parsed = self._reader.read(inputs, request.parameters())
            reply.ticket = self._scheduler.submit(
                reply.parsed.generation, lambda event: self._responder.put(reply, event)
            )
            self._responder.watch(reply)
        except Exception as error:
            self._responder.put(reply, Failure(error))


class Reply:
    """The way back to one client; used by the responder's thread alone once the request is submitted."""

    def __init__(self, sender: Any, wanted: frozenset[str]) -> None:
        self.parsed: ParsedRequest | None = None
        self.ticket: Ticket | None = None
        self.is_open = True
        self._sender = sender
        self._wanted = wanted
        self._collected: Chunk | None = None
        self._has_sent = False

    def poll_cancel(self) -> None:
        """Cancel the request in the scheduler where its client has gone."""
        if self.is_open and self.ticket is not None and self._sender.is_cancelled():
            self.ticket.cancel()

    def handle(self, event: Event) -> None:
        """Send what an event asks for, and the final flag after the last."""
        if isinstance(event, Failure):
            self._fail(event.error)
        elif event.finish_reason == CANCELLED:
            self._finish(_error_response("CANCELLED", "the request was cancelled"))
        else:
            self._handle_chunk(event)

    def _handle_chunk(self, chunk: Chunk) -> None:
        assert self.parsed is not None, "a request that makes chunks was parsed"
        if not self.parsed.stream:
            self._collected = chunk = join_chunks(self._collected, chunk)
        if self.parsed.stream or chunk.finish_reason is not None:
            self._send(chunk if self._has_sent else replace(chunk, text=self.parsed.echo + chunk.text))
        if chunk.finish_reason is not None:
            self._finish()

    def _send(self, chunk: Chunk) -> None:
        # Only what was requested is built: Triton 2.51 prunes the rest without holding the interpreter's lock.
        assert self.parsed is not None, "a request that makes chunks was parsed"
        tensors = response_tensors(chunk, self._wanted - self.parsed.left_out)
        self._has_sent = True
        self._sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()]))

    def _fail(self, error: Exception) -> None:
        if isinstance(error, InputError):
            code = INVALID_ARGUMENT
        elif isinstance(error, QueueFullError | UnavailableError):
            code = "UNAVAILABLE"
        else:
            code = "INTERNAL"
            pb_utils.Logger.log_error(f"hebbline: a request failed: {type(error).__name__}: {error}")
        self._finish(_error_response(code, str(error)))

    def _finish(self, response: Any = None) -> None:
        self.is_open = False
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is None:
            self._sender.send(flags=flags)
        else:
            self._sender.send(response, flags=flags)


class Responder:
    """A thread that sends the events of all replies in order, and polls their clients for cancellation."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Reply, Event | None] | None] = queue.SimpleQueue()
        self._open: set[Reply] = set()
        self._thread = threading.Thread(target=self._run, name="hebbline-responder", daemon=True)
        self._thread.start()

    def put(self, reply: Reply, event: Event) -> None:
        """Send an event's response; called from any thread."""
        self._queue.put((reply, event))

    def watch(self, reply: Reply) -> None:
        """Poll the client of a submitted reply until its last event."""
        self._queue.put((reply, None))

    def close(self) -> None:
        """Send what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        polled = 0.0
        while (item := self._next()) is not None:
            for reply, event in item:
                self._handle(reply, event)
            if time.monotonic() - polled >= CANCEL_POLL_SECONDS:
                self._poll()
                polled = time.monotonic()

    def _next(self) -> list[tuple[Reply, Event | None]] | None:
        """The next event, or nothing where it is time to poll; None at the end. Blocks while no reply is open."""
        try:
            item = self._queue.get(timeout=CANCEL_POLL_SECONDS if self._open else None)
        except queue.Empty:
            return []
        return None if item is None else [item]

    def _handle(self, reply: Reply, event: Event | None) -> None:
        if event is None:
            self._open.add(reply)
        elif reply.is_open:
            try:
                reply.handle(event)
            except Exception as error:
                _give_up(reply, error)
        if not reply.is_open:
            self._open.discard(reply)

    def _poll(self) -> None:
        for reply in self._open:
            try:
                reply.poll_cancel()
            except Exception as error:
                _give_up(reply, error)


def _give_up(reply: Reply, error: Exception) -> None:
    """Triton would not take a response: free the slot and say so in its log."""
    reply.is_open = False
    if reply.ticket is not None:
        reply.ticket.cancel()
    pb_utils.Logger.log_error(f"hebbline: cannot answer a request: {type(error).__name__}: {error}")


def _error_response(code: str, message: str) -> Any:
    """The code is Triton's own for HTTP and unary calls, and the message's first word for a stream."""
    codes = pb_utils.TritonError
    numbers = {
        INVALID_ARGUMENT: codes.INVALID_ARG,
        "UNAVAILABLE": codes.UNAVAILABLE,
        "CANCELLED": codes.CANCELLED,
        "INTERNAL": codes.INTERNAL,
    }
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{code}: {message}", numbers[code]))
