"""The model inside Triton's Python backend. Importable there only: `triton_python_backend_utils` exists in its stub.

Triton's own thread calls `execute`, the intake's read and tokenize, the scheduler's makes tokens, and the responder's
sends them. Only the responder touches Triton's response senders, so a slow client costs the other requests no time in
the model; neither does a long prompt.
"""

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from ...artifacts import InputError
from ...runtime.runner import Runner
from ...runtime.tensorrt import open_runner
from ...runtime.tokenizer import load_tokenizer
from ...runtime.warm_up import warm_up
from ..draft_model import DraftModel, open_draft
from ..generation import CANCELLED, Chunk, join_chunks
from ..scheduler import Scheduler, refusal_total
from ..tickets import Event, Failure, QueueFullError, Ticket, UnavailableError
from .graph_choice import open_chosen
from .intake import Intake
from .lifeline import watch_lifeline
from .metrics import Metrics
from .protocol import INVALID_ARGUMENT, ParsedRequest, RequestReader, response_tensors
from .settings import DRAFT, MODEL_NAME, Settings
from .stall import StallWatch
from .wanted import cannot

CANCEL_POLL_SECONDS = 0.03
"""Each look at a client costs a message to Triton and back, about as much as a token."""


class FailedBackend:
    """In place of a further model that cannot be loaded: its process lives, and every request is told why.

    To Triton it is loaded. In 2.51 the process that asks for a load often dies of the answer that it has failed.
    """

    def __init__(self, model: str, error: Exception) -> None:
        # One line, by which `hebbline serve` knows of it.
        self._message = f"{cannot('load', model)}: {' '.join(str(error).split())}"
        pb_utils.Logger.log_error(f"hebbline: {self._message}")
        watch_lifeline(on_shutdown=lambda: None, has_failed=lambda: False)

    def execute(self, requests: list[Any]) -> None:
        """Refuse requests."""
        for request in requests:
            sender = request.get_response_sender()
            sender.send(_error_response("UNAVAILABLE", self._message), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def close(self) -> None:
        """There is nothing to end."""


def open_backend(artifact: Path, config: Mapping[str, Any], model: str) -> "Backend | FailedBackend":
    """The backend of a model by Triton's configuration; the model `llm` fails to load where it has no backend."""
    try:
        return Backend(artifact, Settings.from_config(config), model)
    except Exception as error:
        if model == MODEL_NAME:
            raise
        return FailedBackend(model, error)


class Backend:
    """The artifact's runner and scheduler, the intake, and the responder; `model` is the name on the server."""

    def __init__(self, artifact: Path, settings: Settings, model: str = MODEL_NAME) -> None:
        threads = settings.threads or None
        runner = open_runner(
            artifact,
            settings.slots,
            threads,
            settings.kv,
            cache_bytes=settings.cache_bytes,
            open_onnx=partial(open_chosen, model=model),
        )
        warm_up(runner)
        tokenizer = load_tokenizer(artifact)
        self._reader = RequestReader(tokenizer, runner.context_length, runner.vocab_size)
        self._scheduler = Scheduler(
            runner,
            tokenizer,
            runner.facts.eos_token_ids,
            max_waiting=settings.max_waiting,
            draft=_open_draft(artifact.with_name(DRAFT), runner, tokenizer, threads),
        )
        self._intake = Intake(settings.slots + settings.max_waiting)
        self._responder = Responder()
        self._stall = StallWatch(self._responder.open_requests, self._responder.events)
        self._metrics = Metrics(self._scheduler.snapshot, model)
        watch_lifeline(
            on_shutdown=lambda: self._scheduler.close(settings.drain_seconds),
            has_failed=self._has_failed,
        )

    def execute(self, requests: list[Any]) -> None:
        """Take requests; everything that is wrong with one is its own last response."""
        for request in requests:
            reply = Reply(request.get_response_sender(), frozenset(request.requested_output_names()))
            try:
                self._intake.put(partial(self._submit, request, reply))
            except Exception as error:
                self._refuse(reply, error)

    def close(self) -> None:
        """End the open requests and all threads."""
        self._metrics.close()
        self._intake.close()
        self._scheduler.close()
        self._responder.close()

    def _has_failed(self) -> bool:
        if not self._stall.is_stalled():
            return self._scheduler.failed
        pb_utils.Logger.log_error(f"hebbline: no request has got anything for {self._stall.seconds:.0f} s: giving up")
        return True

    def _submit(self, request: Any, reply: "Reply") -> None:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            reply.parsed = self._reader.read(inputs, request.parameters())
            for index in range(reply.parsed.generation.sampling.n):
                ticket = self._scheduler.submit(reply.parsed.generation, partial(self._responder.put, reply), index)
                reply.tickets.append(ticket)
            self._responder.watch(reply)
        except Exception as error:
            # A request of nothing at all is the launcher's, which asks whether this process answers.
            self._refuse(reply, error, is_counted=bool(request.inputs()))

    def _refuse(self, reply: "Reply", error: Exception, is_counted: bool = True) -> None:
        if is_counted:
            self._scheduler.counts.add(refusal_total(error) or "requests_failed")
        self._responder.put(reply, Failure(error))


class Reply:
    """The way back to one client; used by the responder's thread alone once the request is submitted."""

    def __init__(self, sender: Any, wanted: frozenset[str]) -> None:
        self.parsed: ParsedRequest | None = None
        self.tickets: list[Ticket] = []
        self.is_open = True
        self._sender = sender
        self._wanted = wanted
        self._collected: dict[int, Chunk] = {}
        self._finished: set[int] = set()
        self._sent: set[int] = set()

    def poll_cancel(self) -> None:
        """Cancel the request in the scheduler where its client has gone."""
        if self.is_open and self.tickets and self._sender.is_cancelled():
            self.cancel()

    def cancel(self) -> None:
        """End all completions of the request."""
        for ticket in self.tickets:
            ticket.cancel()

    def handle(self, event: Event) -> None:
        """Send what an event asks for, and the final flag after the last."""
        if isinstance(event, Failure):
            self.cancel()
            self._fail(event.error)
        elif event.finish_reason == CANCELLED:
            self.cancel()
            self._finish(_error_response("CANCELLED", "the request was cancelled"))
        else:
            self._handle_chunk(event)

    def _handle_chunk(self, chunk: Chunk) -> None:
        assert self.parsed is not None, "a request that makes chunks was parsed"
        if chunk.finish_reason is not None:
            self._finished.add(chunk.index)
        is_last = len(self._finished) == self.parsed.generation.sampling.n
        if self.parsed.stream:
            self._send([chunk])
        else:
            self._collected[chunk.index] = join_chunks(self._collected.get(chunk.index), chunk)
            if is_last:
                self._send([self._collected[index] for index in sorted(self._collected)])
        if is_last:
            self._finish()

    def _send(self, chunks: list[Chunk]) -> None:
        # Only what was requested is built: Triton 2.51 prunes the rest without holding the interpreter's lock.
        assert self.parsed is not None, "a request that makes chunks was parsed"
        echo = self.parsed.echo
        chunks = [c if c.index in self._sent else replace(c, text=echo + c.text) for c in chunks]
        self._sent.update(chunk.index for chunk in chunks)
        wanted = self._wanted - self.parsed.left_out
        tensors = response_tensors(chunks, wanted, self.parsed.generation.prompt_ids)
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
        self._events = 0
        self._thread = threading.Thread(target=self._run, name="hebbline-responder", daemon=True)
        self._thread.start()

    def put(self, reply: Reply, event: Event) -> None:
        """Send an event's response; called from any thread."""
        self._events += 1
        self._queue.put((reply, event))

    def watch(self, reply: Reply) -> None:
        """Poll the client of a submitted reply until its last event."""
        self._queue.put((reply, None))

    def open_requests(self) -> int:
        """How many submitted requests have not ended."""
        return len(self._open)

    def events(self) -> int:
        """How many events there have been; more where any request has got further."""
        return self._events

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
        if event is None and reply.is_open:
            self._open.add(reply)
        elif event is None:
            reply.cancel()  # one of its completions failed while the others were submitted
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


def _open_draft(artifact: Path, runner: Runner, tokenizer: Tokenizer, threads: int | None) -> DraftModel | None:
    """The draft beside the model's artifact, where there is one; said aloud where it is of no use."""
    if not artifact.is_dir():
        return None
    draft = open_draft(artifact, runner, tokenizer, threads)
    used = "guesses tokens" if draft is not None else "is not used: what runs the model cannot check guesses"
    print(f"hebbline: the draft {artifact.resolve()} {used}", flush=True)
    return draft


def _give_up(reply: Reply, error: Exception) -> None:
    """Triton would not take a response: free the slot and say so in its log."""
    reply.is_open = False
    reply.cancel()
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
