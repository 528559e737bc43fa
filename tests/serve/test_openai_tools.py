"""Calls of tools in texts, however the texts are cut; and the bytes of tokens."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebbline.serve.chat_template import ChatTemplate
from hebbline.serve.openai.errors import ApiError
from hebbline.serve.openai.schema import ChatRequest
from hebbline.serve.openai.tokens import TokenBytes
from hebbline.serve.openai.tools import CLOSING, OPENING, ToolParser, tool_parser

CALL = json.dumps({"name": "weather", "arguments": {"city": "Zürich"}})
TEXTS = {
    "no call": ("a < b <tool", "a < b <tool", []),
    "one call": (f"well{OPENING}\n{CALL}\n{CLOSING}", "well", ["weather"]),
    "two calls": (f"{OPENING}{CALL}{CLOSING}\n{OPENING}{CALL}{CLOSING}.", "\n.", ["weather", "weather"]),
    "a call without an end": (f"x{OPENING}{CALL}", "x", ["weather"]),
    "no JSON": (f"x{OPENING}{{{CLOSING}y", f"x{OPENING}{{{CLOSING}y", []),
    "no name": (f"{OPENING}{{}}{CLOSING}", f"{OPENING}{{}}{CLOSING}", []),
    "no JSON and no end": (f"x{OPENING}{{", f"x{OPENING}{{", []),
}


def parse(parser, pieces):
    shown, calls = "", []
    for text, found in [*map(parser.push, pieces), parser.flush()]:
        shown += text
        calls += found
    return shown, calls


@pytest.mark.parametrize("case", TEXTS)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_a_text_is_split_the_same_however_it_is_cut(case, cuts):
    text, shown, names = TEXTS[case]
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    got, calls = parse(ToolParser(OPENING, CLOSING), pieces)
    assert got == shown and [call.name for call in calls] == names
    assert all(json.loads(call.arguments) == {"city": "Zürich"} for call in calls)


def test_text_that_cannot_be_a_call_is_shown_at_once():
    parser = ToolParser(OPENING, CLOSING)
    assert parser.push("hello <")[0] == "hello "
    assert parser.push("b>")[0] == "<b>"
    assert ToolParser("", "").push("hello")[0] == "hello"


def test_a_bare_object_is_a_call_and_other_text_is_not():
    bare = json.dumps({"name": "weather", "parameters": {"city": "Rome"}})
    shown, (call,) = parse(ToolParser("", ""), [" ", *bare])
    assert shown == "" and json.loads(call.arguments) == {"city": "Rome"}
    assert parse(ToolParser("", ""), ['{"a": ', "1}"]) == ('{"a": 1}', [])
    assert parse(ToolParser("", ""), ["see ", bare]) == (f"see {bare}", [])


def test_templates_say_what_markup_there_is():
    assert tool_parser(ChatTemplate("{{ tools }} <tool_call>", {})).push("<tool_c")[0] == ""
    for source, why in (("{{ messages }}", "has no place for tools"), ("{{ tools }}", "form that is not known")):
        with pytest.raises(ApiError, match=why) as caught:
            tool_parser(ChatTemplate(source, {}))
        assert caught.value.param == "tools"


def test_a_message_that_called_a_tool_reaches_the_template_as_objects():
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    body = {"model": "m", "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    (message,) = ChatRequest(**body).messages
    plain = message.plain()
    assert plain["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"} and plain["content"] == ""
    call["function"]["arguments"] = "{"
    with pytest.raises(ApiError, match="are not JSON"):
        ChatRequest(**body).messages[0].plain()


def test_the_bytes_of_tokens_make_the_text(byte_tokenizer, tokenizer):
    text = "the quick é 你好 <b>\n"
    for some in (byte_tokenizer, tokenizer.backend_tokenizer):
        ids = some.encode(text, add_special_tokens=False).ids
        assert b"".join(map(TokenBytes(some).of, ids)) == text.encode()
