"""How a token is drawn from logits: what a request's parameters change, mask and filter, and its own generator."""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError
from ..runtime.scoring import token_log_probs
from .distribution import distribution
from .parameters import SamplingParameters
from .penalties import Penalties
from .structure import Structure


class Sampler:
    """Draws the tokens of one completion, from its own generator: neighbours in a batch change nothing.

    Args:
        parameters: of the request.
        prompt_ids: its prompt, which the repetition penalty counts.
        end_token_ids: tokens that may not come before `min_tokens` others.
        structure: what the text follows; None: nothing.
        index: of the completion among the request's `n`.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        prompt_ids: Sequence[int] = (),
        end_token_ids: Sequence[int] = (),
        structure: Structure | None = None,
        index: int = 0,
    ) -> None:
        self._parameters = parameters
        self._structure = structure
        self._penalties = Penalties(parameters, prompt_ids)
        self._end_token_ids = np.array(sorted(end_token_ids), np.intp)
        self._drawn = 0
        seed = None if parameters.seed is None else (parameters.seed + index) % 2**64
        self._generator = np.random.Generator(np.random.PCG64(seed))

    @property
    def is_complete(self) -> bool:
        """Whether the structure is whole, and nothing can follow."""
        return self._structure is not None and self._structure.is_complete

    def fork(self) -> "Sampler":
        """A sampler that draws what this one would draw next; this one stays as it is."""
        other = copy.copy(self)
        if self._parameters.temperature > 0:
            bits = np.random.PCG64(0)
            bits.state = cast(Any, self._generator.bit_generator.state)
            other._generator = np.random.Generator(bits)
        other._penalties = self._penalties.fork()
        other._structure = None if self._structure is None else self._structure.fork()
        return other

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """Choose one token from logits [V]; every choice takes one number from the generator, greedy takes none.

        Raises:
            CheckError: the logits are not finite, or the structure leaves no token.
        """
        best = int(np.argmax(logits_V))  # the first NaN, where there is one
        if not math.isfinite(logits_V[best]):
            raise CheckError(f"the model returned a logit of {logits_V[best]} for token {best}")
        adjusted_V = self._adjusted(logits_V)
        token = self._choose(adjusted_V, best if adjusted_V is logits_V else int(np.argmax(adjusted_V)))
        self._drawn += 1
        self._penalties.add(token)
        if self._structure is not None:
            self._structure.consume(token)
        return token

    def _choose(self, logits_V: NDArray[np.float32], best: int) -> int:
        if self._parameters.temperature == 0:
            return best
        return distribution(logits_V, logits_V[best], self._parameters).draw(self._generator.random())

    def _adjusted(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits with bias and penalties, and without the tokens that may not come; a copy where they differ."""
        has_minimum = self._drawn < self._parameters.min_tokens and len(self._end_token_ids) > 0
        if self._structure is None and not has_minimum and not self._parameters.changes_logits:
            return logits_V
        logits_V = logits_V.copy()
        self._penalties.apply(logits_V)
        if has_minimum:
            logits_V[self._end_token_ids] = -math.inf
        if self._structure is not None:
            logits_V[~self._structure.allowed()] = -math.inf
            if not np.isfinite(logits_V.max()):
                raise CheckError("the structure of the text is complete before min_tokens are generated")
        return logits_V


def log_probability(logits_V: NDArray[np.float32], token: int) -> float:
    """Natural-log probability of a token under the model itself: temperature 1, nothing changed or filtered."""
    return float(token_log_probs(logits_V[None], [token])[0])


def top_log_probabilities(logits_V: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """The most likely tokens under the model itself and their natural-log probabilities, the likeliest first.

    Among equal logits the lower token id comes first.
    """
    count = min(count, len(logits_V))
    edge = np.partition(logits_V, -count)[-count]
    ids = np.flatnonzero(logits_V >= edge)
    ids = ids[np.argsort(-logits_V[ids], kind="stable")][:count]
    first = log_probability(logits_V, int(ids[0]))
    below = logits_V[ids].astype(np.float64) - float(logits_V[ids[0]])
    return tuple((int(token), first + float(difference)) for token, difference in zip(ids, below, strict=True))
