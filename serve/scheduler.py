"""Continuous batching: one thread drives a runner, and requests join and leave its batch between two steps.

Each step generates a token for every request that is past its prompt, and reads prompts of others, as many tokens as
keep the step from taking much longer than usual: a runner that takes mixed steps does so at once, another one request
after the other. A long prompt so delays its neighbours by a bounded time.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import CheckError, HebblineError, InputError
from ..runtime.runner import MixedRunner, PagedRunner, Runner
from ..runtime.scoring import scored_chunk
from .batch import Batch, Work, works_in_runs
from .counts import Counts, Snapshot
from .draft_model import DraftModel, Wanted
from .drafts import Guess
from .generation import CANCELLED, LENGTH, Chunk, Generation, GenerationRequest
from .pace import Pace
from .structure import StructureCompiler
from .tickets import Event, Failure, QueueFullError, Ticket, UnavailableError
from .waiting import WaitingQueue

logger = logging.getLogger(__name__)

DUMMY_TOKEN = 0
PROMPT_TOKENS = 256
DRAFT_TOKENS = 4
MAX_WAITING = 64


class Scheduler:
    """Serves requests from a runner until `close`.

    A runner that raises fails the requests of that step and no others. An error in the scheduler itself fails every
    request, is logged with its traceback, and makes `submit` refuse from then on.

    Args:
        runner: used from the scheduler's own thread only.
        tokenizer: as `tokenizers` loads it.
        eos_token_ids: any of these ends a completion.
        max_waiting: requests that may wait for a slot; one more is refused.
        prompt_tokens: of all prompts together that are read in one step, at most.
        draft_tokens: guessed of one request in a step, at most, where the runner can check them and that saves time; 0:
            none.
        draft: guesses where prompt look-up does not; None: nothing does.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        *,
        max_waiting: int = MAX_WAITING,
        prompt_tokens: int = PROMPT_TOKENS,
        draft_tokens: int = DRAFT_TOKENS,
        draft: DraftModel | None = None,
    ) -> None:
        self._runner = runner
        # What a protocol says of an object is not looked up in every step.
        self._mixed = runner if isinstance(runner, MixedRunner) else None
        self._tokenizer = tokenizer
        self._eos_token_ids = tuple(eos_token_ids)
        self._structures = StructureCompiler(tokenizer, runner.vocab_size, eos_token_ids)
        blocks = runner.num_blocks if isinstance(runner, PagedRunner) else 0
        self._batch = Batch(runner.slots, blocks, scored_chunk(runner.vocab_size, prompt_tokens))
        self._pace = Pace(prompt_tokens)
        self._draft_tokens = draft_tokens if self._mixed is not None else 0
        self._draft = draft
        self._waiting = WaitingQueue(max_waiting)
        self.counts = Counts()
        self._outbox: list[tuple[Ticket, Event]] = []
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._fatal: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="hebbline-scheduler", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the scheduler's thread has ended with an error."""
        return self._fatal is not None

    def snapshot(self) -> Snapshot:
        """What is going on; may be called from any thread."""
        pool, totals = self._batch.pool, dict(self.counts.totals)
        with self._changed:
            waiting = len(self._waiting)
        totals["preemptions"] = self._batch.preempted
        if pool is not None:
            totals["prefix_tokens_looked_up"] = pool.counts.looked_up
            totals["prefix_tokens_found"] = pool.counts.found
            totals["blocks_evicted"] = pool.counts.evicted
        return Snapshot(
            waiting=waiting,
            running=len(self._batch),
            blocks=pool.size if pool is not None else 0,
            blocks_used=pool.size - pool.available if pool is not None else 0,
            blocks_kept=pool.kept if pool is not None else 0,
            totals=totals,
        )

    def submit(self, request: GenerationRequest, on_event: Callable[[Event], None], index: int = 0) -> Ticket:
        """Queue one completion of a request.

        Args:
            request: the prompt and what is asked.
            on_event: takes the completion's events, on the scheduler's thread; it should return at once.
            index: of the completion among the request's `n`; each of them is submitted by itself.

        Raises:
            InputError: prompt and completion do not fit the context, a token id is not in the vocabulary, or the
                structure of the text is malformed.
            QueueFullError: as many requests wait as may.
            UnavailableError: the scheduler is closing or has failed.
        """
        request = request.fitted(self._runner.context_length, self._runner.vocab_size)
        structure = self._structures.compile(request.sampling)
        generation = Generation(request, self._tokenizer, self._eos_token_ids, structure, index)
        ticket = Ticket(generation, on_event)
        with self._changed:
            if self._fatal is not None:
                raise UnavailableError(f"the scheduler has failed: {self._fatal}")
            if self._closing_at is not None:
                raise UnavailableError("the server is shutting down")
            refused = self._waiting.add(ticket)
            self._changed.notify()
        if refused is not None:
            message = "other clients' requests take this one's place in the queue: try again later"
            self._deliver(refused, Failure(QueueFullError(message)))
        return ticket

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, refuse those that wait, and give the others `grace` seconds to finish; then fail them.

        The thread has ended when this returns.
        """
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
            while not self._waiting and not len(self._batch) and self._closing_at is None:
                self._changed.wait()
            if self._closing_at is None:
                return True
            has_work = bool(self._waiting) or len(self._batch) > 0
            return has_work and time.monotonic() < self._closing_at

    def _iterate(self) -> None:
        self._drop_cancelled()
        self._refuse_at_close()
        with self._changed:
            self._batch.admit(self._waiting)
            generating = sum(ticket.left == 1 for _, ticket in self._batch.held())
        plain = self._pace.wants_plain(generating)
        budget = 0 if plain else self._pace.budget(generating)
        guesses = {} if plain else self._guesses(generating, budget)
        with self._changed:
            works = self._batch.plan(budget, self._waiting, guesses)
        self._deliver_all()
        started = time.perf_counter()
        if self._mixed is not None:
            self._step(works)
        else:
            for run in works_in_runs(works):
                self._step(run)
        self._deliver_all()
        read = sum(len(work.segment.ids_S) for work in works if not work.generates)
        drafts = sum(len(work.guess.tokens) for work in works if work.guess)
        self.counts.add("prompt_tokens", read)
        self._pace.record(generating, read, time.perf_counter() - started, drafts)

    def _guesses(self, generating: int, budget: int) -> dict[Ticket, Guess]:
        """Tokens that may follow those who generate, where checking them saves time."""
        guesses: dict[Ticket, Guess] = {}
        wanting: list[Wanted] = []
        for slot, ticket in self._batch.held():
            most = min(self._draft_tokens, ticket.request.max_tokens - ticket.generation.num_output_tokens - 1)
            if ticket.left != 1 or most <= 0:
                continue
            if found := self._looked_up(ticket, most, generating):
                guesses[ticket] = Guess(found, ticket.lookup_acceptance)
            elif self._draft is not None and self._pace.draft_pays(
                ticket.model_acceptance.rate, generating, self._draft.round_seconds
            ):
                wanting.append(Wanted(slot, ticket, most))
        return guesses | self._drafted(wanting, budget)

    def _looked_up(self, ticket: Ticket, most: int, generating: int) -> tuple[int, ...]:
        if not self._pace.draft_pays(ticket.lookup_acceptance.rate, generating):
            return ()
        return tuple(ticket.lookup.propose(ticket.generation.tokens, most))

    def _drafted(self, wanting: list[Wanted], budget: int) -> dict[Ticket, Guess]:
        """The draft model's guesses. Where it fails it is left out from then on: nobody's text depends on it."""
        if self._draft is None or not wanting:
            return {}
        try:
            found = self._draft.propose(wanting, budget)
        except Exception:
            logger.exception("the draft model has failed: it is not used any more")
            self._draft = None
            return {}
        return {ticket: Guess(tokens, ticket.model_acceptance, by_model=True) for ticket, tokens in found.items()}

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [ticket for ticket in self._waiting if ticket.cancelled.is_set()]
            for ticket in dropped:
                self._waiting.remove(ticket)
        for ticket in dropped:
            self._emit(ticket, ticket.generation.finish(CANCELLED))
        for slot, ticket in self._batch.held():
            if ticket.cancelled.is_set():
                self._release(slot, ticket.generation.finish(CANCELLED))

    def _refuse_at_close(self) -> None:
        """Tell those who wait while the server shuts down: they can go to another one at once."""
        with self._changed:
            refused = self._waiting.take_all(started=False) if self._closing_at is not None else []
        for ticket in refused:
            self._emit(ticket, Failure(UnavailableError("the server is shutting down")))

    def _step(self, works: list[Work]) -> None:
        """Compute what is planned in one step of the runner, and hand each request its logits."""
        if not works:
            return
        try:
            started = time.perf_counter()
            logits_NV = self._logits(works)
            self.counts.add("step_seconds", time.perf_counter() - started)
        except Exception as error:
            self._fail_step(works, error)
            return
        first = 0
        for work in works:
            rows = len(work.segment.rows_N)
            try:
                self._accept(work, logits_NV[first : first + rows])
            except Exception as error:
                self._fail_step([work], error)
            first += rows

    def _logits(self, works: list[Work]) -> NDArray[np.float32]:
        """The logits of the works' rows, one work after the other."""
        if self._mixed is not None:
            return self._mixed.step([work.segment for work in works])
        if works[0].generates:
            return self._decode(works)
        segment = works[0].segment
        return self._runner.prefill(segment.slot, segment.ids_S, segment.past, segment.rows_N)

    def _decode(self, works: list[Work]) -> NDArray[np.float32]:
        """A token for all who generate, in one step over the contiguous range of slots around them.

        A slot in that range that is free or still reading takes part with a dummy token at its own length. The step
        writes keys and values of that token at the position right after what the slot holds: the next chunk of the
        slot's prompt begins at this very position and overwrites it before anything reads it. (The position exists: a
        free slot has length 0, and a reading one is short of its prompt, which fits the context.)
        """
        slots = [work.slot for work in works]
        first, last = min(slots), max(slots)
        tokens = {work.slot: work.segment.ids_S[0] for work in works}
        ids_B = [tokens.get(slot, DUMMY_TOKEN) for slot in range(first, last + 1)]
        past_B = [ticket.past if ticket else 0 for ticket in self._batch.slots[first : last + 1]]
        logits_BV = self._runner.decode(first, ids_B, past_B)
        return logits_BV[[slot - first for slot in slots]]

    def _accept(self, work: Work, logits_NV: NDArray[np.float32]) -> None:
        """Score the prompt's tokens where that is asked, and draw the next ones where all tokens are read."""
        ticket, past = work.ticket, work.segment.past
        if work.guess:
            self._accept_guess(work, work.guess, logits_NV)
            return
        self._batch.advance(work, len(work.segment.ids_S))
        if ticket.request.return_prompt_log_probs and past < len(ticket.request.prompt_ids):
            ticket.generation.score_prompt(logits_NV, past)
        if ticket.left > 0:
            return
        if ticket.request.max_tokens == 0:
            self._release(work.slot, ticket.generation.finish(LENGTH))
            return
        ticket.lookup_acceptance.record(0, 0)
        ticket.model_acceptance.record(0, 0)
        self._draw(work, logits_NV[-1])

    def _accept_guess(self, work: Work, guess: Guess, logits_NV: NDArray[np.float32]) -> None:
        """Draw tokens as long as they are those that were guessed, and one more; what follows was computed in vain."""
        right = 0
        for logits_V, guessed in zip(logits_NV, [*guess.tokens, None], strict=True):
            self._batch.advance(work, 1)
            drawn = self._draw(work, logits_V)
            if drawn is None or drawn != guessed:
                break
            right += 1
        guess.acceptance.record(len(guess.tokens), right)
        for kind in ("draft", "draft_model") if guess.by_model else ("draft",):
            self.counts.add(f"{kind}_tokens", len(guess.tokens))
            self.counts.add(f"{kind}_tokens_accepted", right)

    def _draw(self, work: Work, logits_V: NDArray[np.float32]) -> int | None:
        """Draw a request's next token and hand it over; returns it, and None where the request is finished."""
        chunk = work.ticket.generation.accept(logits_V)
        work.ticket.begun = work.ticket.begun or time.monotonic()
        self.counts.add("generated_tokens", len(chunk.token_ids))
        if chunk.finish_reason is None:
            self._emit(work.ticket, chunk)
            return chunk.token_ids[0]
        self._release(work.slot, chunk)
        return None

    def _fail_step(self, works: list[Work], error: Exception) -> None:
        logger.error("a step failed for %d requests: %s", len(works), error)
        failure = error if isinstance(error, HebblineError) else CheckError(f"the model failed: {error}")
        for work in works:
            self._release(work.slot, Failure(failure))

    def _release(self, slot: int, last: Event) -> None:
        ticket = self._batch.release(slot)
        if ticket is not None:
            self._emit(ticket, ticket.timed(last) if isinstance(last, Chunk) else last)

    def _fail_everything(self, error: Exception) -> None:
        with self._changed:
            self._closing_at = time.monotonic()
            tickets = self._waiting.take_all(started=True)
        for slot, _ in self._batch.held():
            self._release(slot, Failure(error))
        for ticket in tickets:
            self._emit(ticket, Failure(error))
        self._deliver_all()

    def _emit(self, ticket: Ticket, event: Event) -> None:
        """Let an event be handed over with the others of its step.

        Whoever takes them is then woken once, and not for each of them while the next token is drawn.
        """
        self._outbox.append((ticket, event))

    def _deliver_all(self) -> None:
        events, self._outbox = self._outbox, []
        for ticket, event in events:
            self._deliver(ticket, event)

    def _deliver(self, ticket: Ticket, event: Event) -> None:
        """Hand over an event. A receiver that raises loses its request, not the others theirs."""
        if (name := _total_of(event)) is not None:
            self.counts.add(name)
        try:
            ticket.on_event(event)
        except Exception:
            logger.exception("the receiver of a request's events failed; the request is cancelled")
            ticket.cancel()


def _total_of(event: Event) -> str | None:
    """The total that counts a request's last event; None for one that is not the last."""
    if isinstance(event, Failure):
        return refusal_total(event.error) or "requests_failed"
    if event.finish_reason is None:
        return None
    return "requests_cancelled" if event.finish_reason == CANCELLED else "requests_finished"


def refusal_total(error: Exception) -> str | None:
    """The total that counts a refusal; None for an error that is no refusal."""
    for kind, reason in ((QueueFullError, "queue_full"), (UnavailableError, "shutdown"), (InputError, "invalid")):
        if isinstance(error, kind):
            return f"requests_refused_{reason}"
    return None
