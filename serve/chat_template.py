"""The chat template of a model: messages and tools made into the text that the model was trained on.

Templates are Jinja, with the names that transformers gives them, and come with the model: they run in Jinja's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..artifacts import InputError
from ..artifacts.json_files import read_json_object

JINJA_FILE = "chat_template.jinja"
JSON_FILES = ("tokenizer_config.json", "chat_template.json")
DEFAULT = "default"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """One model's template.

    Args:
        source: Jinja.
        tokens: the texts of the special tokens that templates name, such as `bos_token`.

    Raises:
        InputError: the source is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source = source
        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise InputError(f"the model's chat template is no Jinja: {error}") from error

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for descriptions of tools."""
        return "tools" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt. Its special tokens are in the text: tokenize it without adding others.

        Raises:
            InputError: the template refuses the messages, in its own words.
        """
        names = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(**self._tokens, **names)
        # What a template does with messages that it was not written for can go wrong in any way.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise InputError(f"messages: the model's chat template refuses them: {error}") from error


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The template of an artifact or a model directory; None where it has none.

    Raises:
        InputError: it is malformed.
    """
    contents = {name: _read_json(directory / name) for name in JSON_FILES}
    tokens = {name: text for name in _TOKENS if (text := _token(contents["tokenizer_config.json"].get(name)))}
    if (directory / JINJA_FILE).is_file():
        return ChatTemplate((directory / JINJA_FILE).read_text(), tokens)
    for content in contents.values():
        if (source := _default(content.get("chat_template"))) is not None:
            return ChatTemplate(source, tokens)
    return None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _token(value: Any) -> str | None:
    """A special token's text, which files of older models wrap."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _default(value: Any) -> str | None:
    """The template; of several with names, the one of the usual name."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get(DEFAULT)
    return value if isinstance(value, str) else None
