"""What both APIs share of an answer: its id and time, its counts, and the events of a stream."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from .records import Record, said

DONE = b"data: [DONE]\n\n"
JsonStream = AsyncGenerator[dict[str, Any], None]
_FINISH_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass(frozen=True)
class Head:
    """The fields with which every object of an answer begins."""

    kind: str
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    token: str = field(default_factory=lambda: secrets.token_hex(12))

    def fields(self) -> dict[str, Any]:
        """As JSON has them."""
        return {
            "id": f"{self.prefix}-{self.token}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
        }


def usage(record: Record) -> dict[str, Any]:
    """The counts of tokens of a request."""
    total = record.prompt_tokens + record.completion_tokens
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": total,
    }


def finish_reason(reason: str | None) -> str | None:
    """A chunk's reason in OpenAI's words."""
    return None if reason is None else _FINISH_REASONS[reason]


class JsonAnswer(JSONResponse):
    """A response that can always be written, whatever a client has put into what it quotes."""

    def render(self, content: Any) -> bytes:
        """The content as JSON."""
        return _json(content)


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + _json(content) + b"\n\n"


def _json(content: Any) -> bytes:
    # Half of a surrogate pair, which JSON's escapes can write, has no form in UTF-8: a question mark stands for it.
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


async def events(answers: JsonStream, record: Record) -> AsyncGenerator[bytes, None]:
    """The stream of events of an answer. An error within it is an event as well: the status has gone out by then."""
    async with aclosing(answers):
        try:
            async for content in answers:
                yield event(content)
            yield DONE
        except Exception as error:
            failure = said(error, record)
            record.end = failure.reason
            yield event(failure.body)
