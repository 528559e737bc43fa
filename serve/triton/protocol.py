"""The tensors of the protocol: requests from arrays, and arrays from chunks. Nothing here needs Triton.

The names follow KServe v2 servers of language models (vLLM's and TensorRT-LLM's); `config.pbtxt` documents each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...artifacts import InputError
from ..fields import flag, parse_json_fields, sampling_parameters
from ..generation import Chunk, GenerationRequest
from ..tokenizer import bytes_per_token, encode

MAX_TEXT_BYTES = 16 << 20
"""The longest prompt of a tokenizer that sets no limit to the text of a token."""
MAX_ITEMS = 1024
"""Of an array that is not the prompt: more than any may hold, and few enough to look at."""
INVALID_ARGUMENT = "INVALID_ARGUMENT"
"""The code before the message of an error that is the request's own fault; a stream carries no status of its own."""
NO_FIELDS = ("text_input", "input_ids", "sampling_parameters")
LISTS = ("stop", "stop_words", "bad_words")
FLAGS = {
    "stream": False,
    "exclude_input_in_output": True,
    "return_log_probs": False,
    "return_prompt_log_probs": False,
    "return_cumulative_logprob": False,
    "return_finish_reason": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}
"""The fields that are true or false, and what they are where they do not come."""
_LEAVE_OUT = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")


@dataclass(frozen=True)
class ParsedRequest:
    """A request as the backend handles it.

    Attributes:
        generation: what the scheduler is given.
        stream: whether every chunk is a response of its own.
        echo: text to put before the completion: the prompt's, or "".
        left_out: names of outputs that the request does not want, though it may not name those that it does.
    """

    generation: GenerationRequest
    stream: bool
    echo: str
    left_out: frozenset[str] = frozenset()


class RequestReader:
    """Makes requests from tensors, for one model. What is too long is refused before it is looked into.

    Args:
        tokenizer: as `tokenizers` loads it.
        context_length: tokens that a prompt and its completion may have together.
        vocab_size: every token id is below it.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._vocab_size = vocab_size
        most = bytes_per_token(tokenizer)
        self.max_prompt_bytes = MAX_TEXT_BYTES if most is None else math.floor(most * context_length)

    def read(self, inputs: Mapping[str, NDArray], parameters: str = "{}") -> ParsedRequest:
        """A request from its input tensors by name, and the parameters beside them, a JSON object.

        A field that comes more than once counts as its tensor, else as `sampling_parameters` has it.

        Raises:
            InputError: a tensor or parameter is wrong, not known, or too long; the message names it.
        """
        fields = _fields(inputs, parameters)
        flags = {name: flag(name, fields.pop(name, None), default) for name, default in FLAGS.items()}
        sampling = sampling_parameters(fields)
        prompt_ids, text = self._prompt(inputs)
        generation = GenerationRequest(
            prompt_ids=prompt_ids,
            sampling=sampling,
            return_log_probs=flags["return_log_probs"] or flags["return_cumulative_logprob"],
            return_prompt_log_probs=flags["return_prompt_log_probs"],
        )
        generation.check_fits(self._context_length, self._vocab_size)
        echo = "" if flags["exclude_input_in_output"] else text
        return ParsedRequest(
            generation=generation,
            stream=flags["stream"],
            echo=self._tokenizer.decode(list(prompt_ids)) if echo is None else echo,
            left_out=frozenset(name.removeprefix("return_") for name in _LEAVE_OUT if not flags[name]),
        )

    def _prompt(self, inputs: Mapping[str, NDArray]) -> tuple[tuple[int, ...], str | None]:
        """The prompt's tokens, and its text where it came as text."""
        if ("text_input" in inputs) == ("input_ids" in inputs):
            raise InputError("a request takes exactly one of text_input and input_ids")
        if "input_ids" in inputs:
            return self._prompt_ids(inputs["input_ids"]), None
        data = _scalar(inputs, "text_input")
        if len(data) > self.max_prompt_bytes:
            raise InputError(
                f"text_input has {len(data)} bytes; a prompt that fits the context of {self._context_length} tokens "
                f"has at most {self.max_prompt_bytes}"
            )
        text = _text("text_input", data)
        return encode(self._tokenizer, text, self._context_length), text

    def _prompt_ids(self, ids: NDArray) -> tuple[int, ...]:
        if ids.size > self._context_length:
            raise InputError(f"input_ids has {ids.size} tokens, more than the context of {self._context_length} tokens")
        return tuple(ids.reshape(-1).tolist())


def response_tensors(chunk: Chunk, wanted: frozenset[str]) -> dict[str, NDArray]:
    """The output tensors of one response, of those that the request wants."""
    makers = {
        "text_output": lambda: _bytes(chunk.text),
        "token_ids": lambda: np.array(chunk.token_ids, np.int32),
        "log_probs": lambda: np.array(chunk.log_probs, np.float32),
        "cumulative_logprob": lambda: np.array(_present(chunk.cumulative_log_prob), np.float32),
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


def _fields(inputs: Mapping[str, NDArray], parameters: str) -> dict[str, Any]:
    """All that is no prompt, by name: tensors before `sampling_parameters`, and these before the other parameters."""
    fields = parse_json_fields(parameters, "the request's parameters")
    if "sampling_parameters" in inputs:
        fields |= parse_json_fields(_scalar(inputs, "sampling_parameters"))
    return fields | {name: _value(inputs, name) for name in inputs if name not in NO_FIELDS}


def _value(inputs: Mapping[str, NDArray], name: str) -> Any:
    """The field of one tensor: a list, or one value; bytes as text."""
    if inputs[name].size > MAX_ITEMS:
        raise InputError(f"{name} has {inputs[name].size} values; the most is {MAX_ITEMS}")
    if name not in LISTS:
        return _scalar(inputs, name)
    return [_text(name, item) for item in inputs[name].reshape(-1).tolist()]


def _scalar(inputs: Mapping[str, NDArray], name: str) -> Any:
    if inputs[name].size != 1:
        raise InputError(f"{name} takes one value, not {inputs[name].size}")
    return inputs[name].reshape(-1).tolist()[0]


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: {error}") from error


def _present(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _bytes(text: str) -> NDArray:
    # Half of a surrogate pair, which a tokenizer may hold, has no UTF-8 form.
    return np.array([text.encode(errors="replace")], dtype=object)
