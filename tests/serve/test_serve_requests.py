"""Requests from tensors and parameters: what is too long is refused before it costs, and what is wrong by name."""

import json
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from hebbline.artifacts import InputError
from hebbline.serve.fields import MAX_JSON_BYTES
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.protocol import MAX_TEXT_BYTES, RequestReader

CONTEXT = 128


@pytest.fixture
def reader(byte_tokenizer):
    return RequestReader(byte_tokenizer, CONTEXT, 256)


def text(*values):
    return np.array([value.encode() for value in values], object)


def test_a_prompt_as_text_and_as_tokens(reader, byte_tokenizer):
    parsed = reader.read({"text_input": text("abc")})
    assert parsed.generation.prompt_ids == tuple(byte_tokenizer.encode("abc").ids)
    assert (parsed.stream, parsed.echo, parsed.left_out) == (False, "", frozenset())
    parsed = reader.read({"input_ids": np.array([[1, 2]], np.int32), "exclude_input_in_output": np.array([False])})
    assert parsed.generation.prompt_ids == (1, 2)
    assert parsed.echo == byte_tokenizer.decode([1, 2])


def test_the_longest_prompt_that_fits_is_taken_and_one_byte_more_is_not(reader):
    one = {"max_tokens": np.array([1], np.int32)}
    assert len(reader.read({"text_input": text("a" * 127)} | one).generation.prompt_ids) == 127
    with pytest.raises(InputError, match="128 tokens and max_tokens 1 make 129"):
        reader.read({"text_input": text("a" * 128)} | one)
    with pytest.raises(InputError, match=r"text_input has 129 bytes; a prompt that fits .* has at most 128"):
        reader.read({"text_input": text("a" * 129)} | one)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text_input", lambda: np.array([b"\xff" * (50 << 20)], object)),
        ("input_ids", lambda: np.zeros(40 << 20, np.int32)),
        ("sampling_parameters", lambda: np.array([b"[" * (50 << 20)], object)),
        ("stop", lambda: np.full(4 << 20, b"x", object)),
        ("stop_words", lambda: np.full(4 << 20, b"", object)),
        ("bad_words", lambda: np.full(4 << 20, b"", object)),
        ("max_tokens", lambda: np.zeros(40 << 20, np.int32)),
    ],
)
def test_what_is_too_long_is_refused_unseen(reader, name, make):
    """Decoded, listed or parsed, most of these would take seconds, and they would be found wrong in other words."""
    inputs = {name: make()} if name == "input_ids" else {"text_input": text("a"), name: make()}
    started = time.perf_counter()
    with pytest.raises(InputError, match=rf"{name} (has \d+ (bytes|tokens|values)|takes one value)"):
        reader.read(inputs)
    assert time.perf_counter() - started < 1


def test_parameters_are_bounded_too(reader):
    with pytest.raises(InputError, match="the request's parameters has"):
        reader.read({"text_input": text("a")}, " " * (MAX_JSON_BYTES + 1))


def test_a_tokenizer_that_drops_text_is_bounded_generously():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    reader = RequestReader(tokenizer, CONTEXT, 2)
    assert reader.max_prompt_bytes == MAX_TEXT_BYTES
    spaced = (" " * 100_000).join("aaa")
    assert reader.read({"text_input": text(spaced)}).generation.prompt_ids == (0, 0, 0)


def test_tensors_come_before_json_and_json_before_parameters(reader):
    inputs = {
        "text_input": text("a"),
        "sampling_parameters": text(json.dumps({"top_k": 2, "seed": 2, "max_tokens": "2", "stop": ["x"]})),
        "top_k": np.array([[3]], np.int32),
        "stop_words": text("y", ""),
    }
    parameters = json.dumps({"top_k": "1", "seed": 1, "top_p": 0.5, "stream": "true"})
    parsed = reader.read(inputs, parameters)
    assert parsed.generation.sampling == SamplingParameters(max_tokens=2, top_k=3, seed=2, top_p=0.5, stop=("x", "y"))
    assert parsed.stream


def test_flags_of_outputs(reader):
    def read(**flags):
        return reader.read({"text_input": text("a")} | {name: np.array([value]) for name, value in flags.items()})

    assert read(return_num_output_tokens=True, return_finish_reason=True).left_out == frozenset()
    assert read(return_num_input_tokens=False, return_finish_reason=False).left_out == {
        "num_input_tokens",
        "finish_reason",
    }
    assert read(return_cumulative_logprob=True).generation.return_log_probs
    assert read(return_log_probs=True).generation.return_log_probs
    assert not read(return_cumulative_logprob=False).generation.return_log_probs


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, "{}", "exactly one of text_input and input_ids"),
        ({"text_input": text("a"), "input_ids": np.array([1])}, "{}", "exactly one of"),
        ({"text_input": text("a", "b")}, "{}", "text_input takes one value, not 2"),
        ({"text_input": np.array([b"\xff"], object)}, "{}", "text_input is not UTF-8"),
        ({"text_input": text("a"), "stop": np.array([b"\xff"], object)}, "{}", "stop is not UTF-8"),
        ({"text_input": text("a")}, '{"max_token": 3}', "no parameter 'max_token'"),
        ({"text_input": text("a")}, '{"text_input": "b"}', "no parameter 'text_input'"),
        ({"text_input": text("a")}, '{"best_of": 2}', "best_of is not supported"),
        ({"text_input": text("a")}, '{"stream": "maybe"}', "stream must be true or false"),
        ({"text_input": text("a"), "bad_words": text("x")}, "{}", "bad_words is not supported"),
        ({"text_input": text("a"), "beam_width": np.array([4])}, "{}", "beam_width is not supported"),
        ({"text_input": text("a"), "return_context_logits": np.array([True])}, "{}", "return_context_logits is not"),
        ({"text_input": text("a"), "end_id": np.array([256])}, "{}", "stop_token_ids: .* outside the vocabulary"),
        ({"text_input": text("")}, "{}", "the prompt is empty"),
        ({"input_ids": np.array([-1]), "exclude_input_in_output": np.array([False])}, "{}", "outside the vocabulary"),
    ],
)
def test_wrong_requests_are_refused_by_name(reader, inputs, parameters, message):
    with pytest.raises(InputError, match=message):
        reader.read(inputs, parameters)
