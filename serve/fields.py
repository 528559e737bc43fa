"""The fields of a request as clients of other servers send them, made into our sampling parameters.

Clients of vLLM's Triton backend send numbers as text, and every field of vLLM's own that has its default; those of
TensorRT-LLM's name some fields otherwise. What they send is understood where it can be done, accepted where it asks for
nothing (`best_of: 1`, `bad_words: []`, null), and else refused by name. No field is ignored in silence.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..artifacts import InputError
from .parameters import SamplingParameters, shown

MAX_JSON_BYTES = 1 << 20
"""Room for every stop string that is allowed, however it is escaped."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?", re.ASCII)
_OFF = (0, False)
_ONE = (1, True)
_EMPTY = ()

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # Completions by sampling, each of them returned.
    "best_of": _ONE,
    "beam_width": _ONE,
    "use_beam_search": _OFF,
    "early_stopping": _OFF,
    "beam_search_diversity_rate": _OFF,
    "length_penalty": (0, 1),
    "bad_words": _EMPTY,
    "logits_processors": _EMPTY,
    "allowed_token_ids": _EMPTY,
    "embedding_bias_words": _EMPTY,
    "embedding_bias_weights": _EMPTY,
    # The whole prompt is read, and the text is what the tokenizer makes of the tokens, up to a stop string.
    "truncate_prompt_tokens": _EMPTY,
    "detokenize": _ONE,
    "skip_special_tokens": _ONE,
    "spaces_between_special_tokens": _ONE,
    "include_stop_str_in_output": _OFF,
    # Nothing comes back besides the outputs that there are; `return_log_probs` asks for log-probabilities.
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
            names = ", ".join(SamplingParameters.__dataclass_fields__)
            raise InputError(f"there is no parameter '{shown(name)[1:-1]}'; the parameters are {names}")
    return SamplingParameters(**ours)


def log_probs_asked(values: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether `logprobs` and `prompt_logprobs` ask for something: they are a number, 0 included, or true."""
    plain = [_plain(values.get(name)) for name in ("logprobs", "prompt_logprobs")]
    asked = [value is not None and value is not False and value != () for value in plain]
    return asked[0], asked[1]


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


def _penalty(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _plain(value)
    if number != ():
        ours[name] = number


def _minimum(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _plain(value)
    if number not in ((), False):
        ours["min_tokens"] = number


def _truth(ours: dict[str, Any], name: str, value: Any) -> None:
    truth = _plain(value)
    if truth != ():
        ours[name] = bool(truth) if truth in (0, 1) else truth


def _choices(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _plain(value)
    if number != ():
        ours["n"] = 1 if number is True else number


def _bias(ours: dict[str, Any], name: str, value: Any) -> None:
    if _plain(value) == ():
        return
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must map token ids to numbers, not {shown(value)}")
    ours[name] = {_number_of(token): _number_of(bias) for token, bias in value.items()}


def _top_log_probs(ours: dict[str, Any], name: str, value: Any) -> None:
    number = _plain(value)
    if number == () or isinstance(number, bool):  # true: of the tokens that come, and no others
        return
    if not isinstance(number, int):
        raise InputError(f"{name} must be a number of tokens, not {shown(value)}")
    ours["top_logprobs"] = max(number, ours.get("top_logprobs", 0)) if number >= 0 else number


def _text_of_structure(ours: dict[str, Any], name: str, value: Any) -> None:
    kind = "json_schema" if name in ("json", "json_schema", "guided_json") else name.removeprefix("guided_")
    if kind == "json_schema" and isinstance(value, Mapping):
        value = json.dumps(value)
    if value == "":
        return
    ours[kind] = value


def _structures(ours: dict[str, Any], name: str, value: Any) -> None:
    """vLLM's object: {"json": schema}, {"regex": …}, {"choice": […]}, {"grammar": …} or {"json_object": true}."""
    if _plain(value) == ():
        return
    if isinstance(value, str):
        value = parse_json_fields(value, name)
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be an object, not {shown(value)}")
    for key, text in value.items():
        if text is None or text is False:
            continue
        if key == "choice":
            _choice(ours, f"{name}.choice", text)
        elif key == "json_object" and text is True:
            ours["json_schema"] = ANY_OBJECT
        elif key in ("json", "regex", "grammar"):
            _text_of_structure(ours, key, text)
        else:
            raise InputError(f"{name}.{shown(key)[1:-1]} is not supported: give json, regex, choice or grammar")


def _choice(ours: dict[str, Any], name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{name} must be a list of strings, not {shown(value)}")
    ours["regex"] = "|".join(f"({re.escape(text)})" for text in value)


def _response_format(ours: dict[str, Any], name: str, value: Any) -> None:
    """OpenAI's object: of type "text", "json_object" or "json_schema"."""
    if _plain(value) == ():
        return
    if isinstance(value, str):
        value = parse_json_fields(value, name)
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "json_object":
        ours["json_schema"] = ANY_OBJECT
    elif kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, Mapping) or "schema" not in schema:
            raise InputError(f"{name}.json_schema must be an object with a schema, not {shown(schema)}")
        _text_of_structure(ours, "json_schema", schema["schema"])
    elif kind != "text":
        raise InputError(f"{name} must be of type text, json_object or json_schema, not {shown(kind)}")


ANY_OBJECT = '{"type": "object"}'
"""The schema of any JSON object."""
_READERS: dict[str, Callable[[dict[str, Any], str, Any], None]] = {
    "max_tokens": _number,
    "temperature": _number,
    "top_k": _top_k,
    "top_p": _number,
    "min_p": _number,
    "seed": _seed,
    "stop": _stop,
    "stop_token_ids": _stop_tokens,
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "repetition_penalty": _penalty,
    "logit_bias": _bias,
    "min_tokens": _minimum,
    "ignore_eos": _truth,
    "n": _choices,
    "top_logprobs": _top_log_probs,
    "json_schema": _text_of_structure,
    "regex": _text_of_structure,
    "grammar": _text_of_structure,
    # Other names of the above.
    "logprobs": _top_log_probs,
    "prompt_logprobs": _top_log_probs,
    "random_seed": _seed,
    "stop_words": _stop,
    "end_id": _end_id,
    "min_length": _minimum,
    "num_return_sequences": _choices,
    "response_format": _response_format,
    "structured_outputs": _structures,
    "guided_decoding": _structures,
    "guided_json": _text_of_structure,
    "guided_regex": _text_of_structure,
    "guided_grammar": _text_of_structure,
    "guided_choice": _choice,
}
