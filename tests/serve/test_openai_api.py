"""OpenAI's API, by OpenAI's own client, in front of the real server."""

import json

import pytest
from gateways import running_gateway, with_template
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from hebbline.serve.parameters import SamplingParameters

PROMPT = "the quick brown fox"
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, long_artifact, server):
    artifact = with_template(long_artifact, tmp_path_factory.mktemp("gateway") / "artifact")
    with running_gateway(artifact, server, model_name="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def openai(gateway):
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as connected:
        yield connected


@pytest.fixture
def expected(client):
    return client.complete(PROMPT, SamplingParameters(max_tokens=12))


def test_models(openai):
    (model,) = openai.models.list().data
    assert model.id == "tiny" and model.owned_by == "hebbline"
    assert openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(NotFoundError, match="there is no model 'gpt'"):
        openai.models.retrieve("gpt")


def test_a_completion_is_what_our_own_client_gets(openai, expected):
    answer = openai.completions.create(prompt=PROMPT, max_tokens=12, **GREEDY)
    (choice,) = answer.choices
    assert choice.text == expected.text and choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12 and answer.usage.prompt_tokens == expected.num_input_tokens


def test_a_stream_is_the_same_text_in_pieces(openai, expected):
    events = list(
        openai.completions.create(
            prompt=PROMPT, max_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(event.choices[0].text for event in events[:-1]) == expected.text
    assert events[-2].choices[0].finish_reason == "length" and len(events) > 5
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == 12
    assert len({event.id for event in events}) == 1


def test_several_prompts_in_text_and_tokens_each_with_several_choices(openai, client, tokenizer):
    fields = {"max_tokens": 6, "n": 2, "seed": 5, "model": "tiny"}
    answer = openai.completions.create(prompt=[PROMPT, "a lazy dog"], **fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    as_tokens = [tokenizer(text)["input_ids"] for text in (PROMPT, "a lazy dog")]
    assert [c.text for c in openai.completions.create(prompt=as_tokens, **fields).choices] == [
        c.text for c in answer.choices
    ]
    alone = client.complete("a lazy dog", SamplingParameters(max_tokens=6, temperature=1, seed=6))
    assert answer.choices[3].text == alone.text


def test_choices_stream_side_by_side(openai):
    fields = {"prompt": PROMPT, "max_tokens": 8, "n": 3, "seed": 1, "model": "tiny"}
    texts = ["", "", ""]
    for event in openai.completions.create(stream=True, **fields):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in openai.completions.create(**fields).choices]


def test_echo_with_log_probabilities_scores_the_prompt(openai, client, tokenizer):
    (choice,) = openai.completions.create(prompt=PROMPT, max_tokens=0, echo=True, logprobs=0, **GREEDY).choices
    ids = tokenizer(PROMPT)["input_ids"]
    scores = choice.logprobs
    assert choice.text == PROMPT and "".join(scores.tokens) == PROMPT and len(scores.tokens) == len(ids)
    assert scores.token_logprobs[0] is None
    assert scores.token_logprobs[1:] == pytest.approx(client.log_probs(ids), abs=1e-5)
    assert scores.text_offset[1] == len(scores.tokens[0])
    (more,) = openai.completions.create(prompt=PROMPT, max_tokens=3, echo=True, logprobs=0, **GREEDY).choices
    assert more.logprobs.token_logprobs[: len(ids)] == pytest.approx(scores.token_logprobs, abs=1e-5)
    assert len(more.logprobs.tokens) == len(ids) + 3 and more.text.startswith(PROMPT)


def test_stop_ends_the_text(openai, expected):
    stop = expected.text[3:6]
    (choice,) = openai.completions.create(prompt=PROMPT, max_tokens=12, stop=stop, **GREEDY).choices
    assert choice.finish_reason == "stop" and choice.text == expected.text[: expected.text.index(stop)]


MESSAGES = [{"role": "user", "content": "the quick"}]
CHAT_PROMPT = "user: the quick\nassistant: "


def test_a_chat_goes_through_the_template(openai, client):
    answer = openai.chat.completions.create(messages=MESSAGES, max_tokens=8, **GREEDY)
    alone = client.complete(CHAT_PROMPT, SamplingParameters(max_tokens=8))
    assert answer.choices[0].message.content == alone.text and answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == alone.num_input_tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "quick"}]}]
    assert openai.chat.completions.create(messages=parts, max_tokens=8, **GREEDY).choices == answer.choices


def test_a_chat_streams(openai, client):
    events = list(openai.chat.completions.create(messages=MESSAGES, max_tokens=8, stream=True, **GREEDY))
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events)
    assert text == client.complete(CHAT_PROMPT, SamplingParameters(max_tokens=8)).text
    assert events[-1].choices[0].finish_reason == "length"


def test_log_probabilities_of_a_chat(openai):
    fields = {"messages": MESSAGES, "max_tokens": 5, "logprobs": True, **GREEDY}
    whole = openai.chat.completions.create(**fields).choices[0].logprobs.content
    assert len(whole) == 5 and all(entry.logprob <= 0 for entry in whole)
    events = openai.chat.completions.create(stream=True, **fields)
    streamed = [e for event in events if event.choices[0].logprobs for e in event.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]


def test_the_most_likely_tokens_of_each_place(openai):
    (choice,) = openai.completions.create(prompt=PROMPT, max_tokens=4, logprobs=3, echo=True, **GREEDY).choices
    scores = choice.logprobs
    assert scores.top_logprobs[0] is None and len(scores.top_logprobs) == len(scores.tokens)
    for token, score, top in list(zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True))[1:]:
        assert top[token] == pytest.approx(score, abs=1e-4) and 1 <= len(top) <= 4
    last = scores.top_logprobs[-1]
    assert max(last, key=last.get) == scores.tokens[-1], "what is generated greedily is the most likely"
    fields = {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, **GREEDY}
    entries = openai.chat.completions.create(**fields).choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token for entry in entries)
    assert all(bytes(entry.bytes).decode(errors="replace") == entry.token for entry in entries)


def test_an_answer_follows_a_schema(openai):
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    fields = {"messages": MESSAGES, "max_tokens": 1000, **GREEDY}
    choice = openai.chat.completions.create(response_format=wanted, **fields).choices[0]
    content = json.loads(choice.message.content)
    assert content["size"] in ("small", "large") and 0 <= content["count"] <= 9 and choice.finish_reason == "stop"
    with pytest.raises(BadRequestError) as caught:
        openai.chat.completions.create(
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 3}}}, **fields
        )
    assert caught.value.body["param"] == "response_format"


def test_penalties_and_biases_change_the_text(openai, tokenizer, expected):
    fields = {"prompt": PROMPT, "max_tokens": 12, **GREEDY}
    banned = {str(token): -100 for token in set(expected.token_ids)}
    text = openai.completions.create(logit_bias=banned, **fields).choices[0].text
    assert text != expected.text
    penalised = openai.completions.create(frequency_penalty=2, presence_penalty=2, **fields).choices[0].text
    assert penalised != expected.text
    extra = {"extra_body": {"repetition_penalty": 2.0, "min_p": 0.1, "top_k": 5}}
    assert openai.completions.create(**fields, **extra).choices[0].text != expected.text


def test_tools_reach_the_template_and_text_stays_text(openai):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    plain = openai.chat.completions.create(messages=MESSAGES, max_tokens=4, **GREEDY)
    answer = openai.chat.completions.create(messages=MESSAGES, max_tokens=4, tools=tools, **GREEDY)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 10
    assert answer.choices[0].message.tool_calls is None
    unused = openai.chat.completions.create(messages=MESSAGES, max_tokens=4, tools=tools, tool_choice="none", **GREEDY)
    assert unused.usage.prompt_tokens == plain.usage.prompt_tokens


WRONG = {
    "an unknown parameter": ({"max_tokns": 3}, "max_tokns", "there is no parameter 'max_tokns'"),
    "a type": ({"max_tokens": "many"}, "max_tokens", "max_tokens: "),
    "a bound": ({"temperature": -1}, "temperature", "temperature must be at least 0"),
    "another model": ({"model": "gpt"}, "model", "there is no model 'gpt'"),
    "an empty prompt": ({"prompt": ""}, "prompt", "the prompt is empty"),
    "too long a prompt": ({"prompt": "the " * 5000}, "prompt", "maximum context length is 4096 tokens"),
    "far too long a prompt": ({"prompt": "x" * 900_000}, "prompt", "maximum context length is 4096 tokens"),
    "too many tokens": ({"max_tokens": 5000}, "prompt", "maximum context length is 4096 tokens"),
    "a foreign token": ({"prompt": [1, 100_000]}, "prompt", "outside the vocabulary"),
    "options without a stream": ({"stream_options": {}}, "stream_options", "set stream to true"),
    "a bias by name": ({"logit_bias": {"fox": 1}}, "logit_bias", "logit_bias must map token ids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(openai, case):
    change, param, message = WRONG[case]
    fields = {"prompt": PROMPT, "max_tokens": 3, **GREEDY, **change}
    with pytest.raises(APIStatusError) as caught:
        openai.post("/completions", body=fields, cast_to=object)
    body = caught.value.body
    assert caught.value.status_code in (400, 404)
    assert message in body["message"] and body["param"] == param and body["type"] == "invalid_request_error"
    assert body["code"]


def test_embeddings_are_refused(openai):
    with pytest.raises(BadRequestError, match="gives no embeddings"):
        openai.embeddings.create(model="tiny", input="the quick")


def test_a_model_without_a_template_refuses_chats(long_artifact, server):
    with (
        running_gateway(long_artifact, server, model_name="tiny") as gateway,
        OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as openai,
        pytest.raises(BadRequestError, match="has no chat template: use /v1/completions"),
    ):
        openai.chat.completions.create(messages=MESSAGES, **GREEDY)


async def stream_and_go(url):
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai:
        stream = await openai.completions.create(prompt=PROMPT, max_tokens=4000, stream=True, **GREEDY)
        async for _ in stream:
            break
        await stream.close()


def test_clients_that_go_free_their_places(gateway, openai):
    """More of them than there are places and places to wait for one: each would take seconds to its end."""
    import asyncio

    async def all_of_them():
        for _ in range(6):
            await asyncio.gather(*(stream_and_go(f"{gateway.url}/v1") for _ in range(4)))

    asyncio.run(all_of_them())
    assert openai.completions.create(prompt=PROMPT, max_tokens=2, timeout=20, **GREEDY).usage.completion_tokens == 2
