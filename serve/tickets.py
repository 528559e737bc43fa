"""A submitted completion, its events, and the errors of those that are not taken."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..artifacts import HebblineError
from .blocks import Table
from .drafts import Acceptance, PromptLookup
from .generation import Chunk, Generation, GenerationRequest


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
    """A submitted completion. `cancel` may be called from any thread, more than once, and after the end.

    Attributes:
        generation: its state.
        on_event: takes its events.
        past: tokens of it whose keys and values are in the cache.
        table: where these are, for a runner with a pool of blocks.
        lookup: guesses its next tokens. lookup_acceptance, model_acceptance: how good guesses by it and by a draft
            model are.
        cancelled: set by `cancel`.
        submitted, admitted, begun: when it came, had a place, and had a token, on the monotonic clock; None: not yet.
    """

    generation: Generation
    on_event: Callable[[Event], None]
    past: int = 0
    table: Table = field(default_factory=Table)
    lookup: PromptLookup = field(default_factory=PromptLookup)
    lookup_acceptance: Acceptance = field(default_factory=Acceptance)
    model_acceptance: Acceptance = field(default_factory=Acceptance)
    cancelled: threading.Event = field(default_factory=threading.Event)
    submitted: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    begun: float | None = None

    def cancel(self) -> None:
        """Ask for the end of the request; its last event comes within one step, with reason "cancelled"."""
        self.cancelled.set()

    def timed(self, chunk: Chunk) -> Chunk:
        """The last chunk, with what the request spent its time on."""
        now = time.monotonic()
        admitted = self.admitted or now
        prompt_seconds = (self.begun or now) - admitted
        return replace(chunk, queue_seconds=admitted - self.submitted, prompt_seconds=prompt_seconds)

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.generation.request

    @property
    def left(self) -> int:
        """Tokens that are known and not in the cache; one where only the next token is missing."""
        return len(self.generation.tokens) - self.past
