"""Continuous batching: one thread drives a runner, and requests join and leave its batch between two steps.

Each iteration reads a chunk of the oldest prompt that is not read yet, and generates a token for every request that is
past its prompt: in one step where the runner takes mixed steps, else in two. A long prompt so delays its neighbours by
a chunk, not by its length.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import CheckError, HebblineError
from .engine.runner import MixedRunner, Runner, Segment
from .engine.scoring import scored_chunk
from .generation import CANCELLED, LENGTH, Chunk, Generation, GenerationRequest

logger = logging.getLogger(__name__)

DUMMY_TOKEN = 0
PREFILL_CHUNK = 128
MAX_WAITING = 64


class QueueFullError(HebblineError):
    """Too many requests wait already; the caller may try again later."""


class UnavailableError(HebblineError):
    """The scheduler is shutting down, or its thread has failed."""


@dataclass(frozen=True)
class Failure:
    """The last event of a request that did not finish."""

    error: Exception


Event = Chunk | Failure
"""A request's events: chunks, of which the last has a `finish_reason`, or a `Failure` in place of that last one."""


@dataclass(eq=False)
class Ticket:
    """A submitted request. `cancel` may be called from any thread, more than once, and after the end."""

    generation: Generation
    on_event: Callable[[Event], None]
    past: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask for the end of the request; its last event comes within one step, with reason "cancelled"."""
        self.cancelled.set()

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens to read before the first is generated."""
        return self.generation.request.prompt_ids

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt has been read."""
        return self.past >= len(self.prompt_ids)


class Scheduler:
    """Serves requests from a runner until `close`.

    A runner that raises fails the requests of that step and no others. An error in the scheduler itself fails every
    request, is logged with its traceback, and makes `submit` refuse from then on.

    Args:
        runner: used from the scheduler's own thread only.
        tokenizer: as `tokenizers` loads it.
        eos_token_ids: any of these ends a completion.
        max_waiting: requests that may wait for a slot; one more is refused.
        prefill_chunk: tokens of a prompt that are read in one step.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        *,
        max_waiting: int = MAX_WAITING,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._eos_token_ids = tuple(eos_token_ids)
        self._max_waiting = max_waiting
        self._prefill_chunk = prefill_chunk
        self._scored_chunk = scored_chunk(runner.vocab_size, prefill_chunk)
        self._slots: list[Ticket | None] = [None] * runner.slots
        self._prefilling: deque[int] = deque()  # slots, in the order in which they were taken
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._fatal: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="hebbline-scheduler", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the scheduler's thread has ended with an error."""
        return self._fatal is not None

    def submit(self, request: GenerationRequest, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request; `on_event` is called from the scheduler's thread and should return at once.

        Raises:
            InputError: prompt and completion do not fit the context, or a token id is not in the vocabulary.
            QueueFullError: as many requests wait as may.
            UnavailableError: the scheduler is closing or has failed.
        """
        request.check_fits(self._runner.context_length, self._runner.vocab_size)
        ticket = Ticket(Generation(request, self._tokenizer, self._eos_token_ids), on_event)
        with self._changed:
            if self._fatal is not None:
                raise UnavailableError(f"the engine has failed: {self._fatal}")
            if self._closing_at is not None:
                raise UnavailableError("the server is shutting down")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{self._max_waiting} requests wait already: try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, give the open ones `grace` seconds to finish, fail the rest, and end the thread."""
        with self._changed:
            self._closing_at = time.monotonic() + grace
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._iterate()
            error: Exception = UnavailableError("the server is shutting down")
        except Exception as unexpected:
            logger.exception("the scheduler has failed")
            self._fatal = error = unexpected
        self._fail_everything(error)

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False when it is time to end."""
        with self._changed:
            while not self._waiting and not any(self._slots) and self._closing_at is None:
                self._changed.wait()
            if self._closing_at is None:
                return True
            has_work = bool(self._waiting) or any(self._slots)
            return has_work and time.monotonic() < self._closing_at

    def _iterate(self) -> None:
        self._drop_cancelled()
        self._admit()
        if isinstance(self._runner, MixedRunner):
            self._step_together(self._runner)
        else:
            self._decode()
            self._prefill()

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [ticket for ticket in self._waiting if ticket.cancelled.is_set()]
            for ticket in dropped:
                self._waiting.remove(ticket)
        for ticket in dropped:
            self._emit(ticket, ticket.generation.finish(CANCELLED))
        for slot, ticket in self._held():
            if ticket.cancelled.is_set():
                self._release(slot, ticket.generation.finish(CANCELLED))

    def _admit(self) -> None:
        """Give the lowest free slots to those who wait longest: low slots keep the decode range short."""
        with self._changed:
            for slot in range(len(self._slots)):
                if self._slots[slot] is None and self._waiting:
                    self._slots[slot] = self._waiting.popleft()
                    self._prefilling.append(slot)

    def _step_together(self, runner: MixedRunner) -> None:
        """One token for every request past its prompt, and a chunk of the oldest prompt."""
        decoding = self._decoding()
        prefilling = self._oldest_prompt()
        segments = [Segment(slot, (ticket.generation.next_input,), ticket.past, (0,)) for slot, ticket in decoding]
        segments += [self._next_chunk(*held) for held in prefilling]
        if not segments:
            return
        try:
            logits_NV = runner.step(segments)
        except Exception as error:
            self._fail_step(decoding + prefilling, error)
            return
        for (slot, ticket), logits_V in zip(decoding, logits_NV, strict=False):
            ticket.past += 1
            self._try_advance(slot, ticket, logits_V)
        for slot, ticket in prefilling:
            self._try_accept_chunk(slot, ticket, segments[-1], logits_NV[len(decoding) :])

    def _prefill(self) -> None:
        for slot, ticket in self._oldest_prompt():
            chunk = self._next_chunk(slot, ticket)
            try:
                logits_NV = self._runner.prefill(slot, chunk.ids_S, chunk.past, chunk.rows_N)
            except Exception as error:
                self._fail_step([(slot, ticket)], error)
            else:
                self._try_accept_chunk(slot, ticket, chunk, logits_NV)

    def _oldest_prompt(self) -> list[tuple[int, Ticket]]:
        """The request whose prompt is read next, and its slot, where there is one."""
        slots = list(self._prefilling)[:1]
        return [(slot, ticket) for slot in slots if (ticket := self._slots[slot]) is not None]

    def _next_chunk(self, slot: int, ticket: Ticket) -> Segment:
        scored = ticket.generation.request.return_prompt_log_probs
        chunk = self._scored_chunk if scored else self._prefill_chunk
        ids_S = ticket.prompt_ids[ticket.past : ticket.past + chunk]
        is_last = ticket.past + len(ids_S) == len(ticket.prompt_ids)
        rows = range(len(ids_S)) if scored else range(len(ids_S) - 1, len(ids_S)) if is_last else range(0)
        return Segment(slot, ids_S, ticket.past, rows)

    def _try_accept_chunk(self, slot: int, ticket: Ticket, chunk: Segment, logits_NV: NDArray[np.float32]) -> None:
        try:
            self._accept_chunk(slot, ticket, chunk, logits_NV)
        except Exception as error:
            self._fail_step([(slot, ticket)], error)

    def _accept_chunk(self, slot: int, ticket: Ticket, chunk: Segment, logits_NV: NDArray[np.float32]) -> None:
        ticket.past += len(chunk.ids_S)
        if ticket.generation.request.return_prompt_log_probs:
            ticket.generation.score_prompt(logits_NV, chunk.past)
        if ticket.is_decoding:
            self._prefilling.popleft()
            self._first_token(slot, ticket, logits_NV)

    def _first_token(self, slot: int, ticket: Ticket, logits_NV: NDArray[np.float32]) -> None:
        if ticket.generation.request.sampling.max_tokens == 0:
            self._release(slot, ticket.generation.finish(LENGTH))
        else:
            self._advance(slot, ticket, logits_NV[-1])

    def _decode(self) -> None:
        """One token for every request past its prompt, in one step over the contiguous range of slots around them.

        A slot in that range that is free or still prefilling takes part with a dummy token at its own length. The step
        writes keys and values of that token at the position right after what the slot holds: the next prefill chunk of
        the slot begins at this very position and overwrites it before anything reads it. (The position exists: a free
        slot has length 0, and a prefilling one is short of its prompt, which fits the context.)
        """
        active = self._decoding()
        if not active:
            return
        first, last = active[0][0], active[-1][0]
        tickets_B = self._slots[first : last + 1]
        ids_B = [ticket.generation.next_input if ticket and ticket.is_decoding else DUMMY_TOKEN for ticket in tickets_B]
        past_B = [ticket.past if ticket else 0 for ticket in tickets_B]
        try:
            logits_BV = self._runner.decode(first, ids_B, past_B)
        except Exception as error:
            self._fail_step(active, error)
            return
        for slot, ticket in active:
            ticket.past += 1
            self._try_advance(slot, ticket, logits_BV[slot - first])

    def _try_advance(self, slot: int, ticket: Ticket, logits_V: NDArray[np.float32]) -> None:
        try:
            self._advance(slot, ticket, logits_V)
        except Exception as error:
            self._fail_step([(slot, ticket)], error)

    def _advance(self, slot: int, ticket: Ticket, logits_V: NDArray[np.float32]) -> None:
        chunk = ticket.generation.accept(logits_V)
        if chunk.finish_reason is None:
            self._emit(ticket, chunk)
        else:
            self._release(slot, chunk)

    def _fail_step(self, tickets: list[tuple[int, Ticket]], error: Exception) -> None:
        logger.error("a step failed for %d requests: %s", len(tickets), error)
        failure = error if isinstance(error, HebblineError) else CheckError(f"the model failed: {error}")
        for slot, _ in tickets:
            self._release(slot, Failure(failure))

    def _release(self, slot: int, last: Event) -> None:
        ticket, self._slots[slot] = self._slots[slot], None
        if slot in self._prefilling:
            self._prefilling.remove(slot)
        if ticket is not None:
            self._emit(ticket, last)

    def _fail_everything(self, error: Exception) -> None:
        with self._changed:
            self._closing_at = time.monotonic()
            tickets = [*(ticket for _, ticket in self._held()), *self._waiting]
            self._slots = [None] * len(self._slots)
            self._waiting.clear()
        for ticket in tickets:
            self._emit(ticket, Failure(error))

    def _held(self) -> list[tuple[int, Ticket]]:
        return [(slot, ticket) for slot, ticket in enumerate(self._slots) if ticket is not None]

    def _decoding(self) -> list[tuple[int, Ticket]]:
        return [(slot, ticket) for slot, ticket in self._held() if ticket.is_decoding]

    def _emit(self, ticket: Ticket, event: Event) -> None:
        """Hand over an event. A receiver that raises loses its request, not the others theirs."""
        try:
            ticket.on_event(event)
        except Exception:
            logger.exception("the receiver of a request's events failed; the request is cancelled")
            ticket.cancel()
