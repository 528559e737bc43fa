"""How many tokens of prompts a step may read, and whether guessing pays, by what steps were measured to take.

While others generate, a step with prompts takes longer than one without, and their next token comes later. The budget
keeps such a step below a multiple of the usual one.
"""

import statistics
from collections import deque

LIMIT = 2.6
"""The most times as long as a usual step that one with prompts is planned to take; measured ones vary around that."""
LEAST_TOKENS = 4
"""A step reads so many tokens of prompts in any case, however much attention to a long context makes of them."""
FIRST_TOKENS = 64
"""And so many at most beside others before it is known what they take."""
DRAFT_MARGIN = 1.2
"""Guessing has to save so many times what it takes."""
REMEMBERED = 9
"""The middle of so many measurements counts: one that something else on the machine has disturbed does not."""


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


class Pace:
    """Plans the tokens of prompts in a step.

    Args:
        most: tokens of prompts in a step, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._usual = Recent()  # a step in which every request gets one token
        self._per_token = Recent()  # what a token of a prompt adds to a step
        self._per_draft = Recent()  # what a guessed token adds

    def budget(self, generating: int) -> int:
        """Tokens of prompts that the next step may read, beside so many requests that generate."""
        usual, per_token = self._usual.middle, self._per_token.middle
        if generating == 0:
            return self._most
        if usual is None or per_token is None:
            return min(FIRST_TOKENS, self._most)
        affordable = int((LIMIT - 1) * usual / max(per_token, 1e-9))
        return max(min(LEAST_TOKENS, self._most), min(affordable, self._most))

    def draft_pays(self, rate: float, generating: int, round_seconds: float = 0.0) -> bool:
        """Whether guessing a token, which is right at such a rate, saves more time than it takes.

        A right one saves the share of a step that one of those who generate has; each costs all of them its time.
        `round_seconds` is what making a guess for each of them takes.
        """
        usual, cost = self._usual.middle, self._per_draft.middle
        if cost is None:
            cost = self._per_token.middle
        if usual is None:
            return False  # a step without guesses comes first: there would be nothing to compare them with
        if cost is None:
            return generating == 1
        return rate * usual > DRAFT_MARGIN * (cost * generating + round_seconds)

    def record(self, generating: int, prompt_tokens: int, seconds: float, drafts: int = 0) -> None:
        """Take note of a step's measured time, and of the tokens of prompts and the guessed ones that it took."""
        usual = self._usual.middle
        if prompt_tokens > 0 and drafts == 0:
            base = usual if generating and usual is not None else 0.0
            self._per_token.add(max(seconds - base, 0.0) / prompt_tokens)
        elif drafts > 0 and prompt_tokens == 0 and usual is not None:
            self._per_draft.add(max(seconds - usual, 0.0) / drafts)
        elif drafts == 0 and generating:
            self._usual.add(seconds)
