"""The fields of a request as clients of other servers send them, made into our sampling parameters.

Clients of vLLM's Triton backend send numbers as text, and every field of vLLM's own that has its default; those of
TensorRT-LLM's name some fields otherwise. What they send is understood where it can be done, accepted where it asks for
nothing (`n: 1`, `presence_penalty: 0`, null), and else refused by name. No field is ignored in silence.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..artifacts import InputError
from .sampling import SamplingParameters, shown

MAX_JSON_BYTES = 1 << 20
"""Room for every stop string that is allowed, however it is escaped."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?", re.ASCII)
_OFF = (0, False)
_ONE = (1, True)
_EMPTY = ()

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # One answer to a request, by sampling.
    "n": _ONE,
    "best_of": _ONE,
    "num_return_sequences": _ONE,
    "beam_width": _ONE,
    "use_beam_search": _OFF,
    "early_stopping": _OFF,
    "beam_search_diversity_rate": _OFF,
    "length_penalty": (0, 1),
    # No logit is changed by what was said before, nor by name.
    "presence_penalty": _OFF,
    "frequency_penalty": _OFF,
    "repetition_penalty": _ONE,
    "min_tokens": _OFF,
    "min_length": _OFF,
    "ignore_eos": _OFF,
    "bad_words": _EMPTY,
    "logit_bias": _EMPTY,
    "logits_processors": _EMPTY,
    "allowed_token_ids": _EMPTY,
    "embedding_bias_words": _EMPTY,
    "embedding_bias_weights": _EMPTY,
    "guided_decoding": _EMPTY,
    "structured_outputs": _EMPTY,
    # The whole prompt is read, and the text is what the tokenizer makes of the tokens, up to a stop string.
    "truncate_prompt_tokens": _EMPTY,
    "detokenize": _ONE,
    "skip_special_tokens": _ONE,
    "spaces_between_special_tokens": _ONE,
    "include_stop_str_in_output": _OFF,
    # Nothing comes back besides the outputs that there are; `return_log_probs` asks for log-probabilities.
    "logprobs": _EMPTY,
    "prompt_logprobs": _EMPTY,
    "return_logprobs": _OFF,
    "return_context_logits": _OFF,
    "return_generation_logits": _OFF,
    "return_perf_metrics": _OFF,
    "return_kv_cache_reuse_stats": _OFF,
    "num_draft_tokens": _OFF,
    "use_draft_logits": _OFF,
}
"""Fields of other servers for what is not done here, with the values that ask for nothing."""
IGNORED = ("pad_id", "id")
"""Fields without a meaning here, whatever their value: nothing is padded, and Triton itself echoes a request's id."""


def sampling_parameters(values: Mapping[str, Any]) -> SamplingParameters:
    """The sampling parameters from named values as clients send them; null is as good as absent.

    Raises:
        InputError: there is no field of such a name, it is not supported, or its value is wrong.
    """
    ours: dict[str, Any] = {}
    for name, value in values.items():
        if name in _READERS:
            if value is not None:
                _READERS[name](ours, name, value)
        elif name in NEUTRAL:
            _check_neutral(name, value)
        elif name not in IGNORED:
            raise InputError(f"there is no parameter '{shown(name)[1:-1]}'; the parameters are {', '.join(_READERS)}")
    return SamplingParameters(**ours)


def parse_json_fields(text: str | bytes, name: str = "sampling_parameters") -> dict[str, Any]:
    """A JSON object as a dictionary; raises InputError with the field's name for anything else."""
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{name} has {len(text)} bytes; the most is {MAX_JSON_BYTES}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{name} must be a JSON object, not {type(values).__name__}")
    return values


def flag(name: str, value: Any, default: bool) -> bool:
    """A truth value, or "true" or "false"; the default where it is null. Raises InputError for anything else."""
    if value is None:
        return default
    truth = _plain(value)
    if not isinstance(truth, bool):
        raise InputError(f"{name} must be true or false, not {shown(value)}")
    return truth


def _check_neutral(name: str, value: Any) -> None:
    """Raise InputError for a value that asks for what is not done here."""
    allowed = NEUTRAL[name]
    plain = _plain(value)
    if plain in ((), None) or (isinstance(plain, bool | int | float) and plain in allowed):
        return
    instead = f", or give {allowed[0]}" if allowed else ""
    raise InputError(f"{name} is not supported: leave it out{instead}, not {shown(value)}")


def _plain(value: Any) -> Any:
    """A value without its wrapping: text of a number or a truth value as such, and `()` for nothing at all."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        words = {"": (), "true": True, "false": False}
        lowered = value.strip().lower() if len(value) < 100 else value
        return words[lowered] if lowered in words else _number_of(value)
    if isinstance(value, list | tuple):
        return () if all(item in ("", b"") for item in value) else value
    return () if value == {} else value


def _number_of(value: Any) -> Any:
    """Text of a number as the number; anything else as it is."""
    if not isinstance(value, str) or len(value) > 100:
        return value
    if _INTEGER.fullmatch(value.strip()):
        return int(value)
    return float(value) if _NUMBER.fullmatch(value.strip()) else value


def _number(ours: dict[str, Any], name: str, value: Any) -> None:
    ours[name] = _number_of(value)


def _top_k(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _number_of(value)
    ours[name] = 0 if number == -1 else number


def _seed(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _number_of(value)
    if ours.setdefault("seed", number) != number:
        raise InputError("seed and random_seed are the same parameter: give one of them")


def _stop(ours: dict[str, Any], name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple):
        raise InputError(f"{name} must be a list of strings, not {shown(value)}")
    if name == "stop_words":  # clients of TensorRT-LLM's backend send an empty one for none
        strings = [string for string in strings if string != ""]
    ours["stop"] = (*ours.get("stop", ()), *strings)


def _stop_tokens(ours: dict[str, Any], name: str, value: Any) -> None:
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} must be a list of integers, not {shown(value)}")
    ours["stop_token_ids"] = (*ours.get("stop_token_ids", ()), *map(_number_of, value))


def _end_id(ours: dict[str, Any], name: str, value: Any) -> None:
    token = _number_of(value)
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise InputError(f"{name} must be a token id, not {shown(value)}")
    _stop_tokens(ours, name, [token])


_READERS: dict[str, Callable[[dict[str, Any], str, Any], None]] = {
    "max_tokens": _number,
    "temperature": _number,
    "top_k": _top_k,
    "top_p": _number,
    "min_p": _number,
    "seed": _seed,
    "stop": _stop,
    "stop_token_ids": _stop_tokens,
    "random_seed": _seed,
    "stop_words": _stop,
    "end_id": _end_id,
}
