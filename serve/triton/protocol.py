"""The tensors of the protocol: requests from arrays, and arrays from chunks. Nothing here needs Triton.

The names follow KServe v2 servers of language models (vLLM's and TensorRT-LLM's); `config.pbtxt` documents each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...artifacts import InputError
from ...runtime.tokenizer import bytes_per_token, encode
from ..fields import flag, log_probs_asked, parse_json_fields, sampling_parameters
from ..generation import Chunk, GenerationRequest
from ..parameters import shown

MAX_TEXT_BYTES = 16 << 20
"""The longest prompt of a tokenizer that sets no limit to the text of a token."""
MAX_CLIENT_LENGTH = 128
MAX_ITEMS = 1024
"""Of an array that is not the prompt: more than any may hold, and few enough to look at."""
INVALID_ARGUMENT = "INVALID_ARGUMENT"
"""The code before the message of an error that is the request's own fault; a stream has no status of its own."""
NO_FIELDS = ("text_input", "input_ids", "sampling_parameters")
LISTS = ("stop", "stop_words", "bad_words")
FLAGS = {
    "stream": False,
    "exclude_input_in_output": True,
    "add_special_tokens": True,
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
        client = _client(fields.pop("client", None))
        asked, prompt_asked = log_probs_asked(fields)
        sampling = sampling_parameters(fields)
        prompt_ids, text = self._prompt(inputs, flags["add_special_tokens"])
        generation = GenerationRequest(
            prompt_ids=prompt_ids,
            sampling=sampling,
            return_log_probs=asked or flags["return_log_probs"] or flags["return_cumulative_logprob"],
            return_prompt_log_probs=prompt_asked or flags["return_prompt_log_probs"],
            client=client,
        ).fitted(self._context_length, self._vocab_size)
        echo = "" if flags["exclude_input_in_output"] else text
        return ParsedRequest(
            generation=generation,
            stream=flags["stream"],
            echo=self._tokenizer.decode(list(prompt_ids)) if echo is None else echo,
            left_out=frozenset(name.removeprefix("return_") for name in _LEAVE_OUT if not flags[name]),
        )

    def _prompt(self, inputs: Mapping[str, NDArray], special: bool) -> tuple[tuple[int, ...], str | None]:
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
        return encode(self._tokenizer, text, self._context_length, special=special), text

    def _prompt_ids(self, ids: NDArray) -> tuple[int, ...]:
        if ids.size > self._context_length:
            raise InputError(f"input_ids has {ids.size} tokens, more than the context of {self._context_length} tokens")
        return tuple(ids.reshape(-1).tolist())


def response_tensors(
    chunks: Sequence[Chunk], wanted: frozenset[str], prompt_ids: Sequence[int] = ()
) -> dict[str, NDArray]:
    """The output tensors of one response, of those that the request wants.

    Args:
        chunks: one, or the last ones of all completions of a request, joined and in order.
        wanted: names of outputs.
        prompt_ids: the prompt's tokens, which come with the last response.
    """
    tensors = {name: make(chunks) for name, make in _OF_EVERY if name in wanted}
    if all(chunk.finish_reason is not None for chunk in chunks):
        tensors |= {name: make(chunks) for name, make in _OF_THE_LAST if name in wanted}
        if "prompt_token_ids" in wanted:
            tensors["prompt_token_ids"] = np.array(prompt_ids, np.int32)
    return tensors


_Maker = Callable[[Sequence[Chunk]], NDArray]


def _top_pairs(chunks: Sequence[Chunk]) -> list[tuple[int, float]]:
    """The most likely tokens of each place, one place after the other."""
    return [pair for chunk in chunks for top in chunk.top_log_probs for pair in top]


def _prompt_top_pairs(chunks: Sequence[Chunk]) -> list[tuple[int, float]]:
    return [pair for top in chunks[0].prompt_top_log_probs or () for pair in top]


def _ints(values: Iterable[int]) -> NDArray[np.int32]:
    return np.array(list(values), np.int32)


def _floats(values: Iterable[float]) -> NDArray[np.float32]:
    return np.array(list(values), np.float32)


# Once for each token of each request: what makes the tensors is made once for all.
_OF_EVERY: tuple[tuple[str, _Maker], ...] = (
    ("text_output", lambda chunks: _bytes([chunk.text for chunk in chunks])),
    ("token_ids", lambda chunks: _ints(token for chunk in chunks for token in chunk.token_ids)),
    ("log_probs", lambda chunks: _floats(score for chunk in chunks for score in chunk.log_probs)),
    (
        "cumulative_logprob",
        lambda chunks: _floats(c.cumulative_log_prob for c in chunks if c.cumulative_log_prob is not None),
    ),
    ("sequence_index", lambda chunks: _ints(chunk.index for chunk in chunks)),
    ("top_token_ids", lambda chunks: _ints(token for token, _ in _top_pairs(chunks))),
    ("top_log_probs", lambda chunks: _floats(score for _, score in _top_pairs(chunks))),
)
_OF_THE_LAST: tuple[tuple[str, _Maker], ...] = (
    ("finish_reason", lambda chunks: _bytes([chunk.finish_reason or "" for chunk in chunks])),
    ("num_input_tokens", lambda chunks: _ints([chunks[0].num_input_tokens])),
    ("queue_seconds", lambda chunks: _floats(chunk.queue_seconds for chunk in chunks)),
    ("prompt_seconds", lambda chunks: _floats(chunk.prompt_seconds for chunk in chunks)),
    ("num_output_tokens", lambda chunks: _ints(chunk.num_output_tokens for chunk in chunks)),
    ("prompt_log_probs", lambda chunks: _floats(chunks[0].prompt_log_probs or ())),
    ("prompt_top_token_ids", lambda chunks: _ints(token for token, _ in _prompt_top_pairs(chunks))),
    ("prompt_top_log_probs", lambda chunks: _floats(score for _, score in _prompt_top_pairs(chunks))),
)


def _client(value: Any) -> str:
    """The name of whom a request is from; "" where it has none."""
    name = "" if value is None else value
    if not isinstance(name, str) or len(name) > MAX_CLIENT_LENGTH:
        raise InputError(f"client must be text of at most {MAX_CLIENT_LENGTH} characters, not {shown(value)}")
    return name


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
        value = _scalar(inputs, name)
        return _text(name, value) if isinstance(value, bytes) else value
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


def _bytes(texts: Sequence[str]) -> NDArray:
    # Half of a surrogate pair, which a tokenizer may hold, has no UTF-8 form.
    return np.array([text.encode(errors="replace") for text in texts], dtype=object)
