"""What a request can ask of its sampler besides filters: penalties, bias, a least length, alternatives, a structure."""

import json
import re

import numpy as np
import pytest

from hebbline.artifacts import CheckError, InputError
from hebbline.runtime.scoring import token_log_probs
from hebbline.serve.generation import Generation, GenerationRequest
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.penalties import Penalties
from hebbline.serve.sampling import Sampler, top_log_probabilities
from hebbline.serve.structure import StructureCompiler

EOS = 7


def logits(seed=0, size=256):
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def test_penalties_and_bias_are_those_of_their_definitions():
    generator = np.random.default_rng(1)
    prompt, generated = generator.integers(0, 200, 90).tolist(), generator.integers(0, 200, 300).tolist()
    parameters = SamplingParameters(
        frequency_penalty=0.3, presence_penalty=-0.7, repetition_penalty=1.4, logit_bias={3: 2.0, 255: -100.0}
    )
    penalties = Penalties(parameters, prompt)
    for token in generated:
        penalties.add(token)
    found = logits()
    penalties.apply(found)
    expected = logits().astype(np.float64)
    expected[3] += 2
    expected[255] -= 100
    for token in set(prompt) | set(generated):
        expected[token] *= 1.4 if expected[token] <= 0 else 1 / 1.4
    for token in set(generated):
        expected[token] -= 0.3 * generated.count(token) - 0.7
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_frequency_penalty_keeps_a_greedy_text_from_repeating():
    row = logits()
    plain, penalized = Sampler(SamplingParameters()), Sampler(SamplingParameters(frequency_penalty=2.0))
    assert len({plain.sample(row) for _ in range(20)}) == 1
    assert len({penalized.sample(row) for _ in range(20)}) > 3
    np.testing.assert_array_equal(row, logits())  # others may read it still


def test_bias_decides_and_does_not_change_what_is_reported(byte_tokenizer):
    request = GenerationRequest((1,), SamplingParameters(max_tokens=1, logit_bias={9: 100.0}), return_log_probs=True)
    chunk = Generation(request, byte_tokenizer, ()).accept(logits())
    assert chunk.token_ids == (9,)
    assert chunk.log_probs[0] == pytest.approx(token_log_probs(logits()[None], [9])[0])


def likely_end(token=EOS):
    row = logits()
    row[token] = 50
    return row


def accept_all(generation, row, most=50):
    chunks = [generation.accept(row)]
    while chunks[-1].finish_reason is None and len(chunks) < most:
        chunks.append(generation.accept(row))
    return chunks


@pytest.mark.parametrize("stop", [{}, {"stop_token_ids": (5,)}])
def test_min_tokens_come_before_any_end(byte_tokenizer, stop):
    sampling = SamplingParameters(max_tokens=20, min_tokens=4, **stop)
    row = likely_end(5 if stop else EOS)
    chunks = accept_all(Generation(GenerationRequest((1,), sampling), byte_tokenizer, (EOS,)), row)
    assert (chunks[-1].num_output_tokens, chunks[-1].finish_reason) == (4, "stop")


def test_a_stop_string_counts_only_after_min_tokens(byte_tokenizer):
    row = np.zeros(256, np.float32)
    row[(letter := byte_tokenizer.encode("a").ids[0])] = 9
    sampling = SamplingParameters(max_tokens=20, min_tokens=3, stop=("a",))
    chunks = accept_all(Generation(GenerationRequest((letter,), sampling), byte_tokenizer, ()), row)
    assert "".join(chunk.text for chunk in chunks) == "aa"
    assert chunks[-1].finish_reason == "stop"


def test_ignore_eos_goes_on_and_stop_tokens_still_end(byte_tokenizer):
    sampling = SamplingParameters(max_tokens=5, ignore_eos=True)
    chunks = accept_all(Generation(GenerationRequest((1,), sampling), byte_tokenizer, (EOS,)), likely_end())
    assert [chunk.token_ids for chunk in chunks] == [(EOS,)] * 5
    sampling = SamplingParameters(max_tokens=5, ignore_eos=True, stop_token_ids=(EOS,))
    chunks = accept_all(Generation(GenerationRequest((1,), sampling), byte_tokenizer, (EOS,)), likely_end())
    assert (len(chunks), chunks[0].finish_reason) == (1, "stop")


@pytest.mark.parametrize("count", [1, 5, 256, 300])
def test_the_most_likely_tokens(count):
    row = np.round(logits(), 0)  # many are equal
    expected = sorted(range(256), key=lambda token: (-row[token], token))[:count]
    found = top_log_probabilities(row, count)
    assert [token for token, _ in found] == expected
    np.testing.assert_allclose([s for _, s in found], token_log_probs(row[None].repeat(len(found), 0), expected))


def test_completions_of_one_seed_differ_by_their_index():
    row = logits()
    parameters = SamplingParameters(temperature=1.0, seed=2**64 - 1)
    draws = [[Sampler(parameters, index=i).sample(row) for _ in range(1)] for i in range(8)]
    again = [[Sampler(parameters, index=i).sample(row) for _ in range(1)] for i in range(8)]
    assert draws == again
    assert len(set(map(tuple, draws))) > 1


@pytest.fixture(scope="module")
def compiler(byte_tokenizer):
    return StructureCompiler(byte_tokenizer, 256, [EOS])


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_structured_text_is_what_it_is_to_be(compiler, byte_tokenizer, temperature, seed):
    """Whatever the logits: they are random, and change with each token."""
    for fields, fits in (
        ({"json_schema": json.dumps(SCHEMA)}, lambda text: set(json.loads(text)) == {"name", "age"}),
        ({"regex": "(ab|c){2,3}x"}, lambda text: re.fullmatch("(ab|c){2,3}x", text)),
        ({"grammar": 'start: "<" INNER ">"\nINNER: /[a-z]{1,3}/'}, lambda text: re.fullmatch("<[a-z]{1,3}>", text)),
    ):
        sampling = SamplingParameters(max_tokens=400, temperature=temperature, seed=seed, **fields)
        request = GenerationRequest((1,), sampling)
        generation = Generation(request, byte_tokenizer, (EOS,), compiler.compile(sampling))
        chunks = [generation.accept(logits(seed))]
        while chunks[-1].finish_reason is None:
            chunks.append(generation.accept(logits(100 * seed + len(chunks))))
        text = "".join(chunk.text for chunk in chunks)
        assert chunks[-1].finish_reason == "stop"
        assert fits(text), text


def test_a_structure_that_min_tokens_outlast_is_an_error(compiler, byte_tokenizer):
    sampling = SamplingParameters(max_tokens=9, min_tokens=5, regex="ab")
    generation = Generation(GenerationRequest((1,), sampling), byte_tokenizer, (EOS,), compiler.compile(sampling))
    generation.accept(logits())
    assert generation.accept(logits()).finish_reason == "stop"  # nothing can follow
    sampling = SamplingParameters(max_tokens=9, min_tokens=5, regex="a(b{9})?")
    generation = Generation(GenerationRequest((1,), sampling), byte_tokenizer, (EOS,), compiler.compile(sampling))
    generation.accept(logits())
    generation.accept(logits())
    assert generation.num_output_tokens == 2  # the end was not drawn, though the text might have ended


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "(("}, "regex: "),
        ({"json_schema": "{"}, "json_schema: "),
        ({"json_schema": '{"type": "no such type"}'}, "json_schema: "),
        ({"json_schema": "[" * 60_000}, "json_schema: "),
        ({"grammar": "start: missing"}, "grammar: "),
        ({"grammar": "x" * 5000}, "grammar: "),
    ],
)
def test_what_is_no_structure_is_refused_in_few_words(compiler, fields, message):
    with pytest.raises((InputError, CheckError), match=message) as refused:
        structure = compiler.compile(SamplingParameters(**fields))
        if structure is not None:
            structure.allowed()
    assert len(str(refused.value)) < 300
