"""How bias and penalties change the logits of one request, before a token is chosen.

Legend: V vocabulary, G distinct tokens that were generated, P distinct tokens of prompt and completion.
"""

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .parameters import SamplingParameters


class Penalties:
    """The logit bias and the three penalties of one request, and the tokens that they depend on.

    Args:
        parameters: of the request.
        prompt_ids: what `repetition_penalty` counts from the beginning.
    """

    def __init__(self, parameters: SamplingParameters, prompt_ids: Sequence[int]) -> None:
        self._parameters = parameters
        self._biased = np.array(list(parameters.logit_bias.keys()), np.intp)
        self._bias = np.array(list(parameters.logit_bias.values()), np.float32)
        self._generated = _Counts()
        self._seen = _Counts()
        if parameters.repetition_penalty != 1:
            for token in set(prompt_ids):
                self._seen.add(token)

    def fork(self) -> "Penalties":
        """A copy that counts for itself."""
        other = copy.copy(self)
        if self._parameters.changes_logits:
            other._generated, other._seen = copy.deepcopy(self._generated), copy.deepcopy(self._seen)
        return other

    def add(self, token: int) -> None:
        """Take note of a token that was generated."""
        if self._parameters.changes_logits:
            self._generated.add(token)
            self._seen.add(token)

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Change logits [V] in place: bias, then repetition, then frequency and presence."""
        parameters = self._parameters
        logits_V[self._biased] += self._bias
        if parameters.repetition_penalty != 1:
            seen_P = self._seen.ids
            values = logits_V[seen_P]
            penalty = np.float32(parameters.repetition_penalty)
            logits_V[seen_P] = np.where(values > 0, values / penalty, values * penalty)
        if parameters.frequency_penalty or parameters.presence_penalty:
            taken_G = parameters.frequency_penalty * self._generated.counts + parameters.presence_penalty
            logits_V[self._generated.ids] -= taken_G.astype(np.float32)


class _Counts:
    """How often each token came; both arrays grow with the distinct tokens, so that a step makes no new ones."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.intp)
        self._counts = np.empty(64, np.int64)

    @property
    def ids(self) -> NDArray[np.intp]:
        """The distinct tokens."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `ids` came."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Count a token."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            self._make_room(place)
            self._ids[place], self._counts[place] = token, 0
        self._counts[place] += 1

    def _make_room(self, place: int) -> None:
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
