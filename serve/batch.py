"""The requests that are being served: their slots, their blocks of the cache, and what the next step does for each."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..runtime.runner import BLOCK_TOKENS, Segment
from .blocks import BlockPool
from .drafts import Guess
from .tickets import Ticket
from .waiting import WaitingQueue


@dataclass(frozen=True)
class Work:
    """What a step does for one request.

    Attributes:
        slot, ticket: the request.
        segment: the tokens that are put into the cache.
        generates: whether all its tokens were in the cache but for one.
        guess: tokens that follow that one in the segment, and are to be checked.
    """

    slot: int
    ticket: Ticket
    segment: Segment
    generates: bool
    guess: Guess | None = None


class Batch:
    """Up to `slots` requests; used by the scheduler's thread.

    Args:
        slots: of the runner.
        blocks: of the runner's pool; 0 where each slot holds a whole context.
        scored_tokens: of a prompt in a step that wants the logits of all of them.
    """

    def __init__(self, slots: int, blocks: int, scored_tokens: int) -> None:
        self.slots: list[Ticket | None] = [None] * slots
        self.pool = BlockPool(blocks) if blocks else None
        self.preempted = 0
        self._scored_tokens = scored_tokens
        self._order: list[int] = []  # slots, in the order in which they were taken

    def __len__(self) -> int:
        return len(self._order)

    def held(self) -> list[tuple[int, Ticket]]:
        """The requests and their slots, in the order in which they came."""
        return [(slot, ticket) for slot in self._order if (ticket := self.slots[slot]) is not None]

    def admit(self, waiting: WaitingQueue) -> None:
        """Give the lowest free slots to those who are next: low slots keep the decode range short."""
        running = Counter(ticket.request.client for _, ticket in self.held())
        while len(self) < len(self.slots) and (ticket := waiting.first(running)) is not None:
            if not self._reserve(ticket):
                return
            waiting.remove(ticket)
            running[ticket.request.client] += 1
            slot = self.slots.index(None)
            self.slots[slot] = ticket
            ticket.admitted = ticket.admitted or time.monotonic()
            self._order.append(slot)

    def release(self, slot: int) -> Ticket | None:
        """Take a request out and give its blocks back."""
        ticket, self.slots[slot] = self.slots[slot], None
        if ticket is not None:
            self._order.remove(slot)
            if self.pool is not None:
                self.pool.release(ticket.table)
        return ticket

    def plan(self, budget: int, waiting: WaitingQueue, guesses: Mapping[Ticket, Guess] | None = None) -> list[Work]:
        """What the next step does: a token for all who generate, and up to `budget` tokens of prompts, oldest first.

        Where the pool has too few blocks, the request that came last goes back to `waiting`; its tokens are read again.
        `guesses` are further tokens of those that generate; they are left out where blocks are short.
        """
        works: list[Work] = []
        names: set[object] = set()
        for slot in list(self._order):
            ticket = self.slots[slot]
            if ticket is None:
                continue  # preempted for one that is older
            if ticket.left > 1:
                self._reuse(ticket)
                if self._is_read_already(ticket, names):
                    continue
            tokens = self._tokens(ticket, budget)
            if tokens == 0 or not self._make_room(slot, ticket, tokens, waiting):
                continue
            budget -= tokens if ticket.left > 1 else 0
            guess = (guesses or {}).get(ticket) if ticket.left == 1 else None
            if guess and self.pool and not self.pool.grow(ticket.table, ticket.past + 1 + len(guess.tokens)):
                guess = None
            works.append(self._work(slot, ticket, tokens, guess))
        return works

    def advance(self, work: Work, tokens: int) -> None:
        """Take note that a step has put so many tokens of a segment into the cache that are the request's."""
        ticket = work.ticket
        ticket.past += tokens
        if self.pool is not None:
            self.pool.register(ticket.table, ticket.generation.tokens, ticket.past)

    def _reserve(self, ticket: Ticket) -> bool:
        """Take the blocks of all tokens so far; False where there are too few."""
        if self.pool is None:
            return True
        tokens = ticket.generation.tokens
        if self.pool.shortage(tokens) > 0:
            return False
        self._reuse(ticket, is_first=True)
        return self.pool.grow(ticket.table, len(tokens))

    def _reuse(self, ticket: Ticket, is_first: bool = False) -> None:
        """Skip what is in the cache already. A prompt that is scored needs the logits of all its tokens."""
        if self.pool is None or ticket.request.return_prompt_log_probs:
            return
        tokens = ticket.generation.tokens
        ticket.past = max(ticket.past, self.pool.reuse(ticket.table, tokens))
        if is_first:
            self.pool.counts.looked_up += len(tokens)
            self.pool.counts.found += ticket.past

    def _is_read_already(self, ticket: Ticket, names: set[object]) -> bool:
        """Whether an older request reads the same block of the same tokens in this step: then it is shared later."""
        if self.pool is None or ticket.request.return_prompt_log_probs:
            return False
        name = self.pool.next_name(ticket.table, ticket.generation.tokens)
        if name in names:
            return True
        names.add(name)
        return False

    def _tokens(self, ticket: Ticket, budget: int) -> int:
        """How many tokens of a request the step takes. Chunks end where blocks do, so that they can be shared."""
        if ticket.left == 1:
            return 1
        if ticket.request.return_prompt_log_probs and ticket.past < len(ticket.request.prompt_ids):
            budget = min(budget, self._scored_tokens)
        if ticket.left <= budget:
            return ticket.left
        beyond = (ticket.past + budget) % BLOCK_TOKENS
        return budget - beyond if budget > beyond else budget

    def _make_room(self, slot: int, ticket: Ticket, tokens: int, waiting: WaitingQueue) -> bool:
        """Have blocks for a request's next tokens, at the cost of those that came last; False where it was the last."""
        while self.pool is not None and not self.pool.grow(ticket.table, ticket.past + tokens):
            last = self._order[-1]
            preempted = self.release(last)
            assert preempted is not None, "the order holds taken slots"
            preempted.past = 0
            self.preempted += 1
            waiting.put_back(preempted)
            if last == slot:
                return False
        return True

    def _work(self, slot: int, ticket: Ticket, tokens: int, guess: Guess | None) -> Work:
        ids_S = ticket.generation.tokens[ticket.past : ticket.past + tokens]
        last = range(tokens - 1, tokens) if tokens == ticket.left else range(0)
        scores = ticket.request.return_prompt_log_probs and ticket.past < len(ticket.request.prompt_ids)
        rows = range(tokens) if scores else last
        if guess:
            ids_S, rows = [*ids_S, *guess.tokens], range(1 + len(guess.tokens))
        segment = Segment(slot, ids_S, ticket.past, rows, tuple(ticket.table.blocks))
        return Work(slot, ticket, segment, ticket.left == 1, guess)


def works_in_runs(works: list[Work]) -> Iterator[list[Work]]:
    """The steps of a runner that mixes nothing: all that generate together, then one prompt after the other."""
    generating = [work for work in works if work.generates]
    if generating:
        yield generating
    yield from ([work] for work in works if not work.generates)
