"""What clients of other servers send is understood, accepted where it asks for nothing, or refused by name."""

import json
from dataclasses import asdict

import pytest

from hebbline.artifacts import InputError
from hebbline.serve.fields import (
    ANY_OBJECT,
    MAX_JSON_BYTES,
    NEUTRAL,
    flag,
    log_probs_asked,
    parse_json_fields,
    sampling_parameters,
)
from hebbline.serve.parameters import SamplingParameters


def read(text):
    return sampling_parameters(parse_json_fields(text))


def test_every_field_of_ours_is_read():
    values = {
        "max_tokens": 3,
        "temperature": 1,
        "top_k": 4,
        "top_p": 0.5,
        "seed": 2**64 - 1,
        "stop": ["a", "b"],
        "min_p": 0.1,
        "stop_token_ids": [5, 6],
    }
    values |= {
        "frequency_penalty": 0.5,
        "presence_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": 2, "9": -1.5},
        "min_tokens": 2,
        "ignore_eos": True,
        "n": 3,
        "top_logprobs": 4,
        "regex": "a+",
    }
    expected = SamplingParameters(
        3, 1.0, 4, 0.5, 2**64 - 1, ("a", "b"), 0.1, (5, 6), 0.5, -1.0, 1.5, {7: 2.0, 9: -1.5}, 2, True, 3, 4, regex="a+"
    )
    assert read(json.dumps(values)) == expected
    assert read("{}") == SamplingParameters()
    assert set(values) | {"json_schema", "grammar"} == set(SamplingParameters.__dataclass_fields__)
    assert read(json.dumps(asdict(expected))) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"logprobs": 3}, {"top_logprobs": 3}),
        ({"logprobs": "2", "prompt_logprobs": 5}, {"top_logprobs": 5}),
        ({"logprobs": True}, {}),
        ({"num_return_sequences": 2}, {"n": 2}),
        ({"min_length": "4"}, {"min_tokens": 4}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": ANY_OBJECT}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}},
            {"json_schema": '{"type": "integer"}'},
        ),
        ({"structured_outputs": {"regex": "a", "json": None}}, {"regex": "a"}),
        ({"guided_decoding": '{"choice": ["a.", "b"]}'}, {"regex": r"(a\.)|(b)"}),
        ({"guided_json": {"type": "null"}}, {"json_schema": '{"type": "null"}'}),
        ({"guided_choice": ["x"], "regex": None}, {"regex": "(x)"}),
        ({"json_schema": "", "regex": ""}, {}),
    ],
)
def test_other_names_of_ours(values, expected):
    assert sampling_parameters(values) == SamplingParameters(**expected)


def test_log_probs_asked():
    asked = {"logprobs": 0, "prompt_logprobs": True}
    assert log_probs_asked(asked) == (True, True)
    assert log_probs_asked({name: str(value) for name, value in asked.items()}) == (True, True)
    for nothing in (None, "", False, "false", []):
        assert log_probs_asked({"logprobs": nothing}) == (False, False)


def test_numbers_may_be_text():
    values = {"temperature": "0.1", "top_p": ".95", "max_tokens": "100", "top_k": " 7 ", "seed": "18446744073709551615"}
    assert sampling_parameters(values) == SamplingParameters(
        max_tokens=100, temperature=0.1, top_p=0.95, top_k=7, seed=2**64 - 1
    )
    assert sampling_parameters({"temperature": "1e-1", "stop_token_ids": ["3"]}).temperature == 0.1


@pytest.mark.parametrize(
    "value", ["", "x", "1_0", "0x10", "nan", "inf", "1e999", "٣", "1" * 30, "1.5", "--1", "1e5", True, [1], {}, 5.0]
)
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(InputError, match="max_tokens"):
        sampling_parameters({"max_tokens": value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "1_0", "x", "9" * 10_000, float("nan"), 1e400])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match="temperature") as refused:
        sampling_parameters({"temperature": value})
    assert len(str(refused.value)) < 200


def test_a_request_of_a_client_of_vllm_with_all_the_defaults():
    values = {
        "n": 1,
        "best_of": None,
        "presence_penalty": 0.0,
        "frequency_penalty": "0.0",
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "seed": None,
        "stop": None,
        "stop_token_ids": None,
        "bad_words": [],
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "detokenize": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "truncate_prompt_tokens": None,
        "logit_bias": None,
        "allowed_token_ids": None,
    }
    assert sampling_parameters(values) == SamplingParameters(max_tokens=16, temperature=0.7)


def test_the_names_of_tensorrt_llm():
    values = {"stop_words": ["x", ""], "random_seed": 3, "end_id": 2, "pad_id": 2, "bad_words": [""], "beam_width": 1}
    assert sampling_parameters(values) == SamplingParameters(stop=("x",), seed=3, stop_token_ids=(2,))
    assert sampling_parameters({"stop_words": "", "bad_words": ""}) == SamplingParameters()
    both = sampling_parameters({"stop": "a", "stop_words": ["b"], "stop_token_ids": [1], "end_id": 2, "seed": 1})
    assert both == SamplingParameters(stop=("a", "b"), stop_token_ids=(1, 2), seed=1)
    assert sampling_parameters({"seed": 4, "random_seed": "4"}).seed == 4
    with pytest.raises(InputError, match="seed and random_seed"):
        sampling_parameters({"seed": 4, "random_seed": 5})


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_is_accepted_and_the_rest_refused_by_name(name):
    for value in (*NEUTRAL[name], *map(str, NEUTRAL[name]), None, "", [], {}):
        assert sampling_parameters({name: value}) == SamplingParameters()
    for value in (3, "3", 0.5, "x", ["x"], {"1": 2}):
        with pytest.raises(InputError, match=f"^{name} is not supported"):
            sampling_parameters({name: value})


@pytest.mark.parametrize("name", ["max_token", "Temperature", "stop ", "", "x" * 10_000])
def test_an_unknown_parameter_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"there is no parameter '{name[:70]}") as refused:
        sampling_parameters({name: None})
    assert "max_tokens, temperature" in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": [""]}, "stop: each string takes 1 to 1024 characters"),
        ({"stop": 3}, "stop must be a list"),
        ({"stop_words": [3]}, "stop must be a list of strings"),
        ({"stop_words": ["a"] * 17}, "stop may hold 16 strings, not 17"),
        ({"end_id": -1}, "end_id must be a token id, not -1"),
        ({"end_id": "x"}, "end_id must be a token id, not 'x'"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list"),
        ({"top_k": -2}, "top_k must be between 0 and"),
        ({"random_seed": -1}, "seed must be between 0 and"),
        ({"n": 0}, "n must be between 1 and 64"),
        ({"n": 65}, "n must be between 1 and 64"),
        ({"logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ({"logprobs": "x"}, "logprobs must be a number of tokens"),
        ({"frequency_penalty": 2.5}, "frequency_penalty must be between -2 and 2"),
        ({"presence_penalty": "x"}, "presence_penalty must be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between 0.01 and 100"),
        ({"logit_bias": [1]}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {"x": 1}}, "logit_bias: a token id must be an integer"),
        ({"logit_bias": {"1": 101}}, "logit_bias must be between -100 and 100"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, "logit_bias may hold 1024 tokens"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens 3 is more than max_tokens 2"),
        ({"ignore_eos": 3}, "ignore_eos must be true or false"),
        ({"regex": "a", "grammar": "start: /a/"}, "regex and grammar are given"),
        ({"regex": "a" * (1 << 17)}, "regex has 131072 characters; the most is 65536"),
        ({"response_format": {"type": "xml"}}, "response_format must be of type text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema must be an object with a schema"),
        ({"structured_outputs": {"backend": "x"}}, "structured_outputs.backend is not supported"),
        ({"guided_choice": []}, "guided_choice must be a list of strings"),
    ],
)
def test_wrong_values_are_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        sampling_parameters(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff", '{"a": ' + "9" * 5000 + "}", "[" * 100_000])
def test_wrong_json_is_refused(text):
    with pytest.raises(InputError, match="fields "):
        parse_json_fields(text, "fields")


def test_json_is_bounded_before_it_is_parsed():
    text = json.dumps({"stop": ["\x01" * 1024] * 16})
    assert read(text).stop == ("\x01" * 1024,) * 16  # the longest that is allowed, at six characters each
    with pytest.raises(InputError, match=f"has {MAX_JSON_BYTES + 1} bytes"):
        parse_json_fields(" " * (MAX_JSON_BYTES + 1))


def test_flags():
    assert flag("stream", None, True) and not flag("stream", None, False)
    assert flag("stream", "True", False) and not flag("stream", "false", True)
    for value in (1, 0, "yes", "", []):
        with pytest.raises(InputError, match="stream must be true or false"):
            flag("stream", value, False)
