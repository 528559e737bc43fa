"""Calls of tools in a model's text, in the markup that its chat template shows it.

Two are known: a JSON object between `<tool_call>` and `</tool_call>` (Hermes, Qwen), and a text that is nothing but
such an object (Llama 3). The object has the function's `name`, and its `arguments` or `parameters`.
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from ..chat_template import ChatTemplate
from .errors import invalid

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_BARE_SIGNS = ('"parameters"', "'parameters'", "parameters}")


@dataclass(frozen=True)
class ToolCall:
    """One call: the function's name, and its arguments as JSON."""

    name: str
    arguments: str
    call_id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_json(self, index: int | None = None) -> dict[str, Any]:
        """In OpenAI's form; streams also number the calls."""
        function = {"name": self.name, "arguments": self.arguments}
        numbered = {} if index is None else {"index": index}
        return {**numbered, "id": self.call_id, "type": "function", "function": function}


class ToolParser:
    """Splits a text that comes in pieces into what is shown and what is called. What is no call after all is shown."""

    def __init__(self, opening: str, closing: str) -> None:
        self._opening, self._closing = opening, closing
        self._held = ""
        self._is_first = True

    def push(self, piece: str) -> tuple[str, list[ToolCall]]:
        """The text that can be shown now, and the calls that are whole now."""
        self._held += piece
        if not self._opening:
            return self._push_bare()
        shown = ""
        calls: list[ToolCall] = []
        while True:
            before, opening, rest = self._held.partition(self._opening)
            if not opening:
                kept = _overlap(self._held, self._opening)
                shown, self._held = shown + self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
                return shown, calls
            inside, closing, after = rest.partition(self._closing)
            if not closing:
                shown, self._held = shown + before, opening + rest
                return shown, calls
            found = _call(inside)
            shown += before if found else before + opening + inside + closing
            calls += [found] if found else []
            self._held = after

    def flush(self) -> tuple[str, list[ToolCall]]:
        """At the end: what was held back."""
        held, self._held = self._held, ""
        call = _call(held.removeprefix(self._opening))
        return ("", [call]) if call else (held, [])

    def _push_bare(self) -> tuple[str, list[ToolCall]]:
        """Hold a text that may be an object as a whole; show any other as it comes."""
        start = self._held.lstrip()
        if self._is_first and (not start or start.startswith("{")):
            return "", []
        self._is_first = False
        shown, self._held = self._held, ""
        return shown, []


def tool_parser(template: ChatTemplate) -> ToolParser:
    """A parser for the markup of a template; raises ApiError where the template has no tools, or other markup."""
    if template.takes_tools and OPENING in template.source:
        return ToolParser(OPENING, CLOSING)
    if template.takes_tools and any(sign in template.source for sign in _BARE_SIGNS):
        return ToolParser("", "")
    why = "writes calls in a form that is not known here" if template.takes_tools else "has no place for tools"
    raise invalid(f"tools: the model's chat template {why}", "tools", "unsupported_parameter")


def _call(text: str) -> ToolCall | None:
    """The call that a text is; None where it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return None
    arguments = content.get("arguments", content.get("parameters", {}))
    return ToolCall(content["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _overlap(text: str, opening: str) -> int:
    """How many of the last characters of a text may be the beginning of the opening."""
    longest = min(len(text), len(opening) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(opening[:size])), 0)
