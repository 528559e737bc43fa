"""How many tokens of prompts a step may read, and whether guessing pays, by what steps were measured to take.

While others generate, a step with prompts takes longer than one without, and their next token comes later. The budget
keeps such a step below a multiple of the plain one: a step in which every request that generates gets one token, and
nothing else happens. How long a plain step takes depends on how many generate and on how long their texts are. Under a
constant load every step would have prompts or guesses in it, so that none is ever measured: from time to time one is
kept plain for that.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

LIMIT = 2.6
"""The most times as long as a plain step that one with prompts is planned to take; measured ones vary around that."""
LEAST_TOKENS = 4
"""A step reads so many tokens of prompts in any case, however much attention to a long context makes of them."""
FIRST_TOKENS = 64
"""And so many at most beside others before it is known what they take."""
DRAFT_MARGIN = 1.2
"""Guessing has to save so many times what it takes."""
REMEMBERED = 9
"""The middle of so many measurements counts: one that something else on the machine has disturbed does not."""
PLAIN_EVERY = 64
"""A plain step counts for so many steps after it."""
ALIKE = 1.25
"""And for numbers of requests that are so many times larger or smaller, at most."""


class Recent:
    """The latest measurements of a time in seconds.

    Attributes:
        middle: their median, which is read far more often than it changes; None before the first.
    """

    def __init__(self) -> None:
        self.middle: float | None = None
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, seconds: float) -> None:
        """Take note of one more."""
        self._seconds.append(seconds)
        self.middle = statistics.median(self._seconds)


@dataclass
class _Plain:
    """Plain steps of one number of requests that generate.

    Attributes:
        seconds: what they took.
        latest: the number of the step that was the last of them.
    """

    seconds: Recent = field(default_factory=Recent)
    latest: int = 0


class Pace:
    """Plans the tokens of prompts in a step.

    Args:
        most: tokens of prompts in a step, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps = 0
        self._was_plain = True  # the latest step
        self._plain: dict[int, _Plain] = {}  # by the number of requests that generate
        self._found: dict[int, float | None] = {}  # what `plain_seconds` gave since the latest step
        self._per_token = Recent()  # what a token of a prompt adds to a step
        self._per_draft = Recent()  # what a guessed token adds

    def plain_seconds(self, generating: int) -> float | None:
        """What a step takes in which so many requests get one token each; None where none was measured lately."""
        if generating not in self._found:
            self._found[generating] = self._nearest(generating)
        return self._found[generating]

    def _nearest(self, generating: int) -> float | None:
        known = [
            (max(number, generating) / min(number, generating), number)
            for number, plain in self._plain.items()
            if generating and self._steps - plain.latest < PLAIN_EVERY
        ]
        ratio, nearest = min(known, default=(math.inf, 0))
        return self._plain[nearest].seconds.middle if ratio <= ALIKE else None

    def wants_plain(self, generating: int) -> bool:
        """Whether the next step should read no prompts and check no guesses, so that the others can be planned.

        Not the first of those that do: a short prompt now and then is read at once.
        """
        return generating > 0 and not self._was_plain and self.plain_seconds(generating) is None

    def budget(self, generating: int) -> int:
        """Tokens of prompts that the next step may read, beside so many requests that generate."""
        if generating == 0:
            return self._most
        plain, per_token = self.plain_seconds(generating), self._per_token.middle
        if plain is None or per_token is None:
            return min(FIRST_TOKENS, self._most)
        affordable = int((LIMIT - 1) * plain / max(per_token, 1e-9))
        return max(min(LEAST_TOKENS, self._most), min(affordable, self._most))

    def draft_pays(self, rate: float, generating: int, round_seconds: float = 0.0) -> bool:
        """Whether guessing a token, which is right at such a rate, saves more time than it takes.

        A right one saves the share of a step that one of those who generate has; each costs all of them its time.
        `round_seconds` is what making a guess for each of them takes.
        """
        plain, cost = self.plain_seconds(generating), self._per_draft.middle
        if cost is None:
            cost = self._per_token.middle
        if plain is None:
            return False  # a step without guesses comes first: there would be nothing to compare them with
        if cost is None:
            return generating == 1
        return rate * plain > DRAFT_MARGIN * (cost * generating + round_seconds)

    def record(self, generating: int, prompt_tokens: int, seconds: float, drafts: int = 0) -> None:
        """Take note of a step's measured time, and of the tokens of prompts and the guessed ones that it took."""
        plain = self.plain_seconds(generating)
        if prompt_tokens > 0 and drafts == 0 and (plain is not None or not generating):
            self._per_token.add(max(seconds - (plain or 0.0), 0.0) / prompt_tokens)
        elif drafts > 0 and prompt_tokens == 0 and plain is not None:
            self._per_draft.add(max(seconds - plain, 0.0) / drafts)
        elif drafts == 0 and prompt_tokens == 0 and generating:
            of_number = self._plain.setdefault(generating, _Plain())
            of_number.seconds.add(seconds)
            of_number.latest = self._steps
        self._steps += 1
        self._was_plain = prompt_tokens == 0 and drafts == 0
        self._found.clear()
