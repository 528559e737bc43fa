"""How a token is drawn from logits, and the parameters that a request may set.

The default is greedy, with nothing filtered: what is served is then what was trained and exported, token for token.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError, InputError
from .engine.scoring import token_log_probs

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class SamplingParameters:
    """What a request asks of the sampler; wrong values raise InputError with the field's name.

    Attributes:
        max_tokens: the most tokens to generate; 0 only scores the prompt.
        temperature: divides the logits; 0 is greedy, and the three fields below then have no effect.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this, in (0, 1]; 1 keeps all.
        seed: of this request's own generator; None draws one from the system.
        stop: strings that end the text; the text is cut before the one that completes first.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, INT32_MAX)
        _check_integer("top_k", self.top_k, INT32_MAX)
        if self.seed is not None:
            _check_integer("seed", self.seed, UINT64_MAX)
        object.__setattr__(self, "temperature", _finite("temperature", self.temperature))
        object.__setattr__(self, "top_p", _finite("top_p", self.top_p))
        if self.temperature < 0:
            raise InputError(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @classmethod
    def from_json(cls, text: str | bytes) -> "SamplingParameters":
        """Parse a JSON object with any of the fields; raises InputError naming what is wrong."""
        return cls.from_mapping(parse_json_fields(text))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SamplingParameters":
        """Build from named values; a name that is no field raises InputError."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"sampling_parameters: there is no field '{name}'; the fields are {', '.join(known)}")
        return cls(**values)


def parse_json_fields(text: str | bytes) -> dict[str, Any]:
    """A JSON object as a dictionary; raises InputError for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"sampling_parameters is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"sampling_parameters must be a JSON object, not {type(values).__name__}")
    return values


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
        probabilities_V = filtered_probabilities(logits_V, self._parameters)
        cumulative_V = np.cumsum(probabilities_V)
        drawn = self._generator.random() * cumulative_V[-1]
        return int(np.searchsorted(cumulative_V, drawn, side="right"))


def filtered_probabilities(logits_V: NDArray[np.float32], parameters: SamplingParameters) -> NDArray[np.float64]:
    """The distribution [V] after temperature, then top-k, then top-p; sums to 1, and is 0 where filtered out.

    Equal logits at the edge of either set are kept by the lowest token id. The temperature must be above 0.
    """
    shifted_V = (np.asarray(logits_V, np.float64) - logits_V.max()) / parameters.temperature
    weights_V = np.exp(shifted_V)
    if 0 < parameters.top_k < len(weights_V):
        weights_V = _keep_top_k(weights_V, shifted_V, parameters.top_k)
    if parameters.top_p < 1:
        weights_V = _keep_top_p(weights_V, parameters.top_p)
    return weights_V / weights_V.sum()


def log_probability(logits_V: NDArray[np.float32], token: int) -> float:
    """Natural-log probability of a token under the model itself: temperature 1, nothing filtered."""
    return float(token_log_probs(logits_V[None], [token])[0])


def _keep_top_k(weights_V: NDArray, shifted_V: NDArray, k: int) -> NDArray:
    threshold = np.partition(shifted_V, -k)[-k]
    above_V = shifted_V > threshold
    at_threshold = np.flatnonzero(shifted_V == threshold)[: k - int(above_V.sum())]
    above_V[at_threshold] = True
    return np.where(above_V, weights_V, 0.0)


def _keep_top_p(weights_V: NDArray, top_p: float) -> NDArray:
    candidates = np.flatnonzero(weights_V)
    order = candidates[np.argsort(-weights_V[candidates], kind="stable")]
    cumulative = np.cumsum(weights_V[order])
    kept = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    result_V = np.zeros_like(weights_V)
    result_V[order[:kept]] = weights_V[order[:kept]]
    return result_V


def _check_integer(name: str, value: Any, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be an integer, not {value!r}")
    if not 0 <= value <= maximum:
        raise InputError(f"{name} must be between 0 and {maximum}, not {value}")


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, not {value!r}")
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
        raise InputError(f"stop must be a list of strings, not {value!r}")
    if len(strings) > MAX_STOP_STRINGS:
        raise InputError(f"stop may hold {MAX_STOP_STRINGS} strings, not {len(strings)}")
    for string in strings:
        if not 0 < len(string) <= MAX_STOP_LENGTH:
            raise InputError(f"stop: each string takes 1 to {MAX_STOP_LENGTH} characters, not {len(string)}")
    return tuple(strings)
