"""How a token is drawn from logits, and the parameters that a request may set.

The default is greedy, with nothing filtered: what is served is then what was trained and exported, token for token.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError, InputError
from .distribution import distribution
from .engine.scoring import token_log_probs

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 64
SHOWN = 80
"""Characters of a wrong value that its message repeats: the value may be of megabytes."""
INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class SamplingParameters:
    """What a request asks of the sampler; wrong values raise InputError with the field's name.

    Attributes:
        max_tokens: the most tokens to generate; 0 only scores the prompt.
        temperature: divides the logits; 0 is greedy, and the four fields below then have no effect.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this, in (0, 1]; 1 keeps all.
        min_p: first keep the tokens that have this share of the most likely one's probability, in [0, 1]; 0 keeps all.
        seed: of this request's own generator; None draws one from the system.
        stop: strings that end the text; the text is cut before the one that completes first.
        stop_token_ids: tokens that end the text, besides the model's own.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, INT32_MAX)
        _check_integer("top_k", self.top_k, INT32_MAX)
        if self.seed is not None:
            _check_integer("seed", self.seed, UINT64_MAX)
        object.__setattr__(self, "temperature", _finite("temperature", self.temperature))
        object.__setattr__(self, "top_p", _finite("top_p", self.top_p))
        object.__setattr__(self, "min_p", _finite("min_p", self.min_p))
        if self.temperature < 0:
            raise InputError(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be between 0 and 1, not {self.min_p}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_tokens(self.stop_token_ids))


class Sampler:
    """Draws the tokens of one request, from its own generator: neighbours in a batch change nothing."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self._parameters = parameters
        self._generator = np.random.Generator(np.random.PCG64(parameters.seed))

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """Choose one token from logits [V]; every choice takes one number from the generator, greedy takes none.

        Raises:
            CheckError: the logits are not finite.
        """
        best = int(np.argmax(logits_V))  # the first NaN, where there is one
        if not math.isfinite(logits_V[best]):
            raise CheckError(f"the model returned a logit of {logits_V[best]} for token {best}")
        if self._parameters.temperature == 0:
            return best
        return distribution(logits_V, logits_V[best], self._parameters).draw(self._generator.random())


def filtered_probabilities(logits_V: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.float64]:
    """The distribution [V] from which `Sampler` draws; sums to 1, and is 0 where filtered out.

    See `distribution` for what is kept. The temperature must be above 0.
    """
    return distribution(logits_V, logits_V.max(), parameters).probabilities(len(logits_V))


def log_probability(logits_V: NDArray[np.float32], token: int) -> float:
    """Natural-log probability of a token under the model itself: temperature 1, nothing filtered."""
    return float(token_log_probs(logits_V[None], [token])[0])


def _check_integer(name: str, value: Any, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be an integer, not {shown(value)}")
    if not 0 <= value <= maximum:
        raise InputError(f"{name} must be between 0 and {maximum}, not {shown(value)}")


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be finite, not {number}")
    return number


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise InputError(f"stop must be a list of strings, not {shown(value)}")
    if len(strings) > MAX_STOP_STRINGS:
        raise InputError(f"stop may hold {MAX_STOP_STRINGS} strings, not {len(strings)}")
    for string in strings:
        if not 0 < len(string) <= MAX_STOP_LENGTH:
            raise InputError(f"stop: each string takes 1 to {MAX_STOP_LENGTH} characters, not {len(string)}")
    return tuple(strings)


def _stop_tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"stop_token_ids must be a list of integers, not {shown(value)}")
    if len(value) > MAX_STOP_TOKENS:
        raise InputError(f"stop_token_ids may hold {MAX_STOP_TOKENS} tokens, not {len(value)}")
    for token in value:
        _check_integer("stop_token_ids", token, INT32_MAX)
    return tuple(value)


def shown(value: Any) -> str:
    """A value as a message repeats it: its beginning, where it is long."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:SHOWN]
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
