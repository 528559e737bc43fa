"""Values of a configuration with which no model computes anything that means something.

transformers warns of most of them, and computes with them; so every command that opens a model asks here first. What
is sound, but not among what hebbline takes, is `fields`' to refuse.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..artifacts import InputError

_NUMBERS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("rope_theta", "a number above 0", lambda value: value > 0),
    ("factor", "a number of at least 1", lambda value: value >= 1),
    ("partial_rotary_factor", "a number above 0, and at most 1", lambda value: 0 < value <= 1),
    ("original_max_position_embeddings", "a whole number of tokens", lambda value: value >= 1 and value == int(value)),
    ("attention_factor", "a number above 0", lambda value: value > 0),
    ("beta_fast", "a number above 0", lambda value: value > 0),
    ("beta_slow", "a number above 0", lambda value: value > 0),
    ("low_freq_factor", "a number above 0", lambda value: value > 0),
    ("high_freq_factor", "a number above 0", lambda value: value > 0),
)
"""Of `rope_parameters`: the field, what it must be, and whether a finite number is that."""


def rotary_entries(config: PretrainedConfig) -> Mapping[str, Mapping[str, Any]]:
    """The rotary parameters of a model by the type of layer, where they differ so; else all that there are by ""."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_type = parameters and all(isinstance(entry, Mapping) for entry in parameters.values())
    return parameters if by_type else {"": parameters}


def check_rotary_numbers(config: PretrainedConfig) -> None:
    """Refuse numbers of `rope_parameters` that give no frequencies, of a model of any family.

    Raises:
        InputError: there is one; the message names the field.
    """
    for entry in rotary_entries(config).values():
        kind = entry.get("rope_type", "default")
        for name, words, is_allowed in _NUMBERS:
            value = entry.get(name)
            if value is not None and not (_is_finite(value) and is_allowed(value)):
                raise InputError(f"rope_parameters.{name} of rope_type '{kind}' is {value!r}; it must be {words}")
        low, high = entry.get("low_freq_factor"), entry.get("high_freq_factor")
        if kind == "llama3" and low is not None and high is not None and low >= high:
            raise InputError(f"rope_parameters.high_freq_factor is {high}; it must be above low_freq_factor, {low}")


def check_rotary_type(kind: Any) -> None:
    """Refuse a `rope_type` that nobody knows; InputError names those that transformers has."""
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        known = ", ".join(("default", *ROPE_INIT_FUNCTIONS))
        raise InputError(f"rope_parameters.rope_type '{kind}' is none that transformers has: {known}")


def check_factors(name: str, factors: Any, pairs: int) -> None:
    """Refuse factors of LongRoPE that are not a positive number for each of the pairs of places that turn.

    Raises:
        InputError: they are not; the message begins with `name`.
    """
    if not isinstance(factors, list | tuple) or not all(_is_finite(factor) and factor > 0 for factor in factors):
        raise InputError(f"rope_parameters.{name} must be a list of numbers above 0")
    if len(factors) != pairs:
        raise InputError(f"rope_parameters.{name} has {len(factors)} numbers, and {pairs} pairs of places turn")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
