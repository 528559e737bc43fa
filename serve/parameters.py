"""What a request may ask of the sampler, with the bounds of each field. Every front and client uses this definition.

The default is greedy, with nothing filtered: what is served is then what was trained and exported, token for token.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..artifacts import InputError

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 64
MAX_CHOICES = 64
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STRUCTURE_BYTES = 64 << 10
SHOWN = 80
"""Characters of a wrong value that its message repeats: the value may be of megabytes."""
INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1
STRUCTURES = ("json_schema", "regex", "grammar")


@dataclass(frozen=True)
class SamplingParameters:
    """What a request asks of the sampler; wrong values raise InputError with the field's name.

    The fields apply in this order: the structure and `min_tokens` say which tokens may come at all; `logit_bias`, then
    the three penalties change logits; greedy takes the largest; else temperature, min-p, top-k and top-p filter.

    Attributes:
        max_tokens: the most tokens to generate; None as many as fit the context; 0 only scores the prompt.
        temperature: divides the logits; 0 is greedy, and `top_k`, `top_p`, `min_p` and `seed` then have no effect.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this, in (0, 1]; 1 keeps all.
        seed: of this request's own generator; None draws one from the system.
        stop: strings that end the text; the text is cut before the one that completes first.
        min_p: first keep the tokens that have this share of the most likely one's probability, in [0, 1]; 0 keeps all.
        stop_token_ids: tokens that end the text, besides the model's own.
        frequency_penalty: taken off a token's logit for each time that it was generated, in [-2, 2].
        presence_penalty: taken off the logit of a token that was generated, in [-2, 2].
        repetition_penalty: divides the positive and multiplies the negative logits of tokens in the prompt or the
            completion (Keskar et al. 2019, "CTRL", section 4.1), in [0.01, 100]; 1 is off.
        logit_bias: added to the logits of the tokens with these ids, in [-100, 100] each.
        min_tokens: no end-of-sequence token, stop token or stop string ends the text before so many tokens.
        ignore_eos: the model's own end-of-sequence tokens do not end the text; `stop_token_ids` still do.
        n: completions of the same prompt; the one of index i uses `seed + i`.
        top_logprobs: where log-probabilities are asked for, also those of this many most likely tokens.
        json_schema, regex, grammar: the text is JSON of this schema (as JSON text), matches this regular expression
            as a whole, or follows this grammar (Lark's notation, as llguidance reads it). At most one.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    top_logprobs: int = 0
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        self._check_integers()
        self._check_numbers()
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos must be true or false, not {shown(self.ignore_eos)}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_tokens(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        self._check_structure()

    @property
    def structure(self) -> tuple[str, str] | None:
        """The kind and the text of what structures the output; None where nothing does."""
        given = [(kind, text) for kind in STRUCTURES if (text := getattr(self, kind)) is not None]
        return given[0] if given else None

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty changes logits."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty)
        return bool(self.logit_bias) or penalties != (0, 0, 1)

    def _check_integers(self) -> None:
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 0, INT32_MAX)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, UINT64_MAX)
        _check_integer("top_k", self.top_k, 0, INT32_MAX)
        _check_integer("min_tokens", self.min_tokens, 0, INT32_MAX)
        _check_integer("n", self.n, 1, MAX_CHOICES)
        _check_integer("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")

    def _check_numbers(self) -> None:
        for name, least, most in (
            ("temperature", 0, math.inf),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("frequency_penalty", -2, 2),
            ("presence_penalty", -2, 2),
            ("repetition_penalty", 0.01, 100),
        ):
            number = _finite(name, getattr(self, name))
            object.__setattr__(self, name, number)
            if name == "top_p" and not 0 < number <= 1:
                raise InputError(f"top_p must be above 0 and at most 1, not {number}")
            if not least <= number <= most:
                bounds = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise InputError(f"{name} must be {bounds}, not {number}")

    def _check_structure(self) -> None:
        given = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given: a text follows one of them")
        for name in given:
            text = getattr(self, name)
            if not isinstance(text, str):
                raise InputError(f"{name} must be text, not {shown(text)}")
            if len(text) > MAX_STRUCTURE_BYTES:
                raise InputError(f"{name} has {len(text)} characters; the most is {MAX_STRUCTURE_BYTES}")


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be an integer, not {shown(value)}")
    if not least <= value <= most:
        raise InputError(f"{name} must be between {least} and {most}, not {shown(value)}")


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
        _check_integer("stop_token_ids", token, 0, INT32_MAX)
    return tuple(value)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias must map token ids to numbers, not {shown(value)}")
    if len(value) > MAX_BIASES:
        raise InputError(f"logit_bias may hold {MAX_BIASES} tokens, not {len(value)}")
    biases = {}
    for token, bias in value.items():
        _check_integer("logit_bias: a token id", token, 0, INT32_MAX)
        biases[token] = _finite("logit_bias", bias)
        if abs(biases[token]) > 100:
            raise InputError(f"logit_bias must be between -100 and 100, not {biases[token]}")
    return biases


def shown(value: Any) -> str:
    """A value as a message repeats it: its beginning, where it is long."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:SHOWN]
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
