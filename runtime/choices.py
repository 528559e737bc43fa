"""Which of several continuations a model finds most probable: zero-shot accuracy under anything that gives
log-probabilities.

Legend: C choices, S tokens.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifacts import InputError
from .perplexity import Scorer


@dataclass(frozen=True)
class Continuation:
    """A context and a choice in tokens: the last `predicted` of `ids` are the choice's, at least one.

    `characters` is the length of the choice's text, which its log-probability is divided by in the normalised figure.
    """

    ids: Sequence[int]
    predicted: int
    characters: int


@dataclass(frozen=True)
class TokenQuestion:
    """A question in tokens, and the index of the right choice."""

    choices: tuple[Continuation, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceScore:
    """How often a model chooses rightly among the choices of `questions` questions, and the seconds that it took.

    Attributes:
        accuracy: by the sum of the choice's log-probabilities.
        normalised: by that sum over the choice's characters.
        chance: of choosing blindly.
        questions: how many there were.
        seconds: for all of them.
    """

    accuracy: float
    normalised: float
    chance: float
    questions: int
    seconds: float

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, for questions drawn at random; see the function of this name."""
        return standard_error(self.accuracy, self.questions)


def standard_error(share: float, count: int) -> float:
    """Of a share p that was found among n at random: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def choice_accuracy(questions: Iterable[TokenQuestion], scorer: Scorer) -> ChoiceScore:
    """Ask all questions; of choices that are equally probable the first counts.

    Raises:
        InputError: there is no question.
    """
    started, right, right_by_length = time.perf_counter(), 0, 0
    chances: list[float] = []
    for question in questions:
        sums_C = np.array([float(scorer(choice.ids)[-choice.predicted :].sum()) for choice in question.choices])
        characters_C = np.array([choice.characters for choice in question.choices])
        right += int(sums_C.argmax()) == question.answer
        right_by_length += int((sums_C / characters_C).argmax()) == question.answer
        chances.append(1 / len(question.choices))
    if not chances:
        raise InputError("there is no question to ask")
    count, seconds = len(chances), time.perf_counter() - started
    return ChoiceScore(right / count, right_by_length / count, sum(chances) / count, count, seconds)
