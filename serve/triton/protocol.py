"""The tensors of the protocol: requests from arrays, and arrays from chunks. Nothing here needs Triton.

The names follow KServe v2 servers of language models (vLLM's and TensorRT-LLM's); `config.pbtxt` documents each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...artifacts import InputError
from ..generation import Chunk, GenerationRequest
from ..sampling import SamplingParameters, parse_json_fields

MAX_TEXT_BYTES = 16 << 20
INVALID_ARGUMENT = "INVALID_ARGUMENT"
"""The code before the message of an error that is the request's own fault; a stream carries no status of its own."""
SAMPLING_FIELDS = ("max_tokens", "temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class ParsedRequest:
    """A request as the backend handles it.

    Attributes:
        generation: what the scheduler is given.
        stream: whether every chunk is a response of its own.
        echo: text to put before the completion: the prompt's, or "".
    """

    generation: GenerationRequest
    stream: bool
    echo: str


def parse_request(inputs: Mapping[str, NDArray], tokenizer: Tokenizer) -> ParsedRequest:
    """Read a request from its input tensors by name; raises InputError naming the tensor that is wrong."""
    prompt_ids, text = _prompt(inputs, tokenizer)
    echoes = not _flag(inputs, "exclude_input_in_output", default=True)
    return ParsedRequest(
        generation=GenerationRequest(
            prompt_ids=prompt_ids,
            sampling=_sampling(inputs),
            return_log_probs=_flag(inputs, "return_log_probs"),
            return_prompt_log_probs=_flag(inputs, "return_prompt_log_probs"),
        ),
        stream=_flag(inputs, "stream"),
        echo=(tokenizer.decode(list(prompt_ids)) if text is None else text) if echoes else "",
    )


def response_tensors(chunk: Chunk, wanted: frozenset[str]) -> dict[str, NDArray]:
    """The output tensors of one response, of those that the request wants."""
    makers = {
        "text_output": lambda: _bytes(chunk.text),
        "token_ids": lambda: np.array(chunk.token_ids, np.int32),
        "log_probs": lambda: np.array(chunk.log_probs, np.float32),
    }
    if chunk.finish_reason is not None:
        reason = chunk.finish_reason
        makers |= {
            "finish_reason": lambda: _bytes(reason),
            "num_input_tokens": lambda: np.array([chunk.num_input_tokens], np.int32),
            "num_output_tokens": lambda: np.array([chunk.num_output_tokens], np.int32),
            "prompt_log_probs": lambda: np.array(chunk.prompt_log_probs or (), np.float32),
        }
    return {name: make() for name, make in makers.items() if name in wanted}


def join_chunks(first: Chunk | None, second: Chunk) -> Chunk:
    """Two consecutive chunks as one, for a request that is answered in a single response."""
    if first is None:
        return second
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        log_probs=first.log_probs + second.log_probs,
    )


def _prompt(inputs: Mapping[str, NDArray], tokenizer: Tokenizer) -> tuple[tuple[int, ...], str | None]:
    """The prompt's tokens, and its text where it came as text."""
    if ("text_input" in inputs) == ("input_ids" in inputs):
        raise InputError("a request takes exactly one of text_input and input_ids")
    if "input_ids" in inputs:
        return tuple(inputs["input_ids"].reshape(-1).tolist()), None
    text = _text("text_input", _scalar(inputs, "text_input"))
    return tuple(tokenizer.encode(text).ids), text


def _sampling(inputs: Mapping[str, NDArray]) -> SamplingParameters:
    """`sampling_parameters`, overridden by the fields that come as tensors of their own."""
    values: dict[str, Any] = {}
    if "sampling_parameters" in inputs:
        values = parse_json_fields(_text("sampling_parameters", _scalar(inputs, "sampling_parameters")))
    values |= {name: _scalar(inputs, name) for name in SAMPLING_FIELDS if name in inputs}
    if "stop" in inputs:
        values["stop"] = [_text("stop", item) for item in inputs["stop"].reshape(-1).tolist()]
    return SamplingParameters.from_mapping(values)


def _flag(inputs: Mapping[str, NDArray], name: str, default: bool = False) -> bool:
    return bool(_scalar(inputs, name)) if name in inputs else default


def _scalar(inputs: Mapping[str, NDArray], name: str) -> Any:
    if inputs[name].size != 1:
        raise InputError(f"{name} takes one value, not {inputs[name].size}")
    return inputs[name].reshape(-1).tolist()[0]


def _text(name: str, value: bytes | str) -> str:
    if len(value) > MAX_TEXT_BYTES:
        raise InputError(f"{name} has {len(value)} bytes; the most is {MAX_TEXT_BYTES}")
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: {error}") from error


def _bytes(text: str) -> NDArray:
    # Half of a surrogate pair, which a tokenizer may hold, has no UTF-8 form.
    return np.array([text.encode(errors="replace")], dtype=object)
