"""Chat templates, against transformers' own rendering of the same ones."""

import json

import pytest

from hebbline.artifacts import InputError
from hebbline.serve.chat_template import ChatTemplate, read_chat_template

CHATML = """{%- if tools %}{{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if loop.index0 == 7 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
BOS = "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
BOS += "[{{ m.content }}]{% endfor %}{{ strftime_now('%Y') | length }}"
MESSAGES = [{"role": "system", "content": "é <b> "}, {"role": "user", "content": 'what\'s "that"?'}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "é <b>", "parameters": {}}}]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("source", [CHATML, BOS])
def test_the_text_is_that_of_transformers(tokenizer, source, tools, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", source, raising=False)
    expected = tokenizer.apply_chat_template(MESSAGES, tools, add_generation_prompt=True, tokenize=False)
    tokens = {"bos_token": tokenizer.bos_token or ""}
    assert ChatTemplate(source, tokens).render(MESSAGES, tools) == expected


def test_what_a_template_refuses_is_an_input_error():
    template = ChatTemplate(BOS, {"bos_token": "<s>"})
    with pytest.raises(InputError, match="the model's chat template refuses them: no tools here"):
        template.render([{"role": "tool", "content": "x"}])
    with pytest.raises(InputError, match="the model's chat template refuses them"):
        ChatTemplate("{{ messages[0].content + 1 }}", {}).render(MESSAGES)
    with pytest.raises(InputError, match="is no Jinja"):
        ChatTemplate("{% if %}", {})


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}"],
)
def test_a_template_cannot_leave_its_sandbox(source):
    with pytest.raises(InputError, match="refuses them"):
        ChatTemplate(source, {}).render(MESSAGES)


def write(directory, name, content):
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_where_templates_are_found(tmp_path):
    assert read_chat_template(tmp_path) is None
    write(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}1"})
    assert read_chat_template(tmp_path).render(MESSAGES) == "<s>1"
    named = [{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert read_chat_template(tmp_path).render(MESSAGES) == "3"
    write(tmp_path, "chat_template.jinja", "4")
    assert read_chat_template(tmp_path).render(MESSAGES) == "4"
    write(tmp_path, "tokenizer_config.json", "[")
    with pytest.raises(InputError, match=r"tokenizer_config\.json cannot be read as JSON"):
        read_chat_template(tmp_path)
