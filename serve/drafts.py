"""Guesses of the next tokens, which a step checks together: how good they are, and those by prompt look-up.

A step can check several guessed tokens of a sequence at once: it computes the logits after each, a token is drawn from
each in turn as it would be without guesses, and the first that differs from its guess ends the turn. What comes out is
thus what would have come without them, greedy or sampled, and takes fewer steps where the guesses are right.

Prompt look-up (Saxena 2023) guesses what followed the same words before, and costs nothing: it is right where texts
repeat themselves, as in code, quotations, tables, and answers from a given text. `draft_model.py` guesses by a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LENGTHS = (4, 3, 2)
"""Tokens of a run that is looked up, the longest first."""
PRIOR = 0.5
"""The share of guesses that is taken to be right before any was checked."""
MEMORY = 0.2
"""The weight of the latest check."""
FORGETTING = 0.01
"""How far a token without guesses brings the share back to the prior: after failures it is tried again at times."""


@dataclass
class Acceptance:
    """The share of one sequence's guesses of one kind that were right, lately."""

    rate: float = PRIOR

    def record(self, proposed: int, accepted: int) -> None:
        """Take note of a step: so many tokens were guessed, and so many of them were right."""
        if proposed:
            self.rate += MEMORY * (accepted / proposed - self.rate)
        else:
            self.rate += FORGETTING * (PRIOR - self.rate)


@dataclass(frozen=True)
class Guess:
    """Tokens that may follow a sequence, the share that is kept of their kind, and whether a model guessed them."""

    tokens: tuple[int, ...]
    acceptance: Acceptance
    by_model: bool = False


class PromptLookup:
    """Where the runs of tokens of one sequence were last."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}  # a run of tokens -> the place after where it was last
        self._indexed = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow; none where the last two have not come before."""
        for end in range(max(self._indexed, 1), len(tokens)):
            for length in LENGTHS:
                if length <= end:
                    self._followers[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
        for length in LENGTHS:
            place = self._followers.get(tuple(tokens[-length:]))
            if place is not None:
                return list(tokens[place : place + most])
        return []
