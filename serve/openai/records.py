"""What is known of one HTTP request: filled while it is served, then counted in metrics and written into the log."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from .errors import INTERNAL, ApiError, api_error
from .keys import Key


@dataclass(frozen=True)
class Phases:
    """What one completion of a request spent its time on.

    Attributes:
        choice: which of the request's completions.
        sent, ended: when it went to the server and when it was whole, on the monotonic clock.
        queue_seconds, prompt_seconds: until it was admitted, and from there until its first token; the server says so.
    """

    choice: int
    sent: float
    ended: float
    queue_seconds: float
    prompt_seconds: float

    def durations(self) -> tuple[tuple[str, float], ...]:
        """The phases in order, with their seconds."""
        left = max(0.0, self.ended - self.sent - self.queue_seconds - self.prompt_seconds)
        return ("queue", self.queue_seconds), ("prompt", self.prompt_seconds), ("decode", left)


@dataclass(eq=False)
class Record:
    """One request.

    Attributes:
        request_id: the client's own `X-Request-Id` where it is sound, else a new one.
        method, path: of HTTP.
        key: with which it came; None where none is asked for.
        status: of the response; 0 before it.
        end: how it ended: a finish reason, the reason of a refusal, or "disconnected".
        prompt_tokens, completion_tokens: of all its completions together.
        started: on the monotonic clock, in seconds.
        first_token: seconds from the start to the first token; None where there was none.
        model: that was asked for, where the server has it.
        phases: of each completion that became whole.
        trace_id: of its trace, in 32 digits; None: it has none.
        text: the prompt and the completion, for a log that is asked to have them; None: for no log.
    """

    request_id: str
    method: str
    path: str
    key: Key | None = None
    status: int = 0
    end: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    model: str | None = None
    phases: list[Phases] = field(default_factory=list)
    trace_id: str | None = None
    text: dict[str, str] | None = None

    def set_prompt(self, prompt: str) -> None:
        """Keep the prompt, where the log is to have it."""
        if self.text is not None:
            self.text["prompt"] = prompt

    def add_completion(self, text: str) -> None:
        """Keep what has been generated, where the log is to have it."""
        if self.text is not None:
            self.text["completion"] = self.text.get("completion", "") + text

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started


def said(error: Exception, record: Record, parameters: Sequence[str] = ()) -> ApiError:
    """Any failure of a request as what its client is told; what it is not told of is printed, with the request's id."""
    failure = api_error(error, parameters)
    if failure.code == INTERNAL:
        print(f"hebbline gateway: {record.request_id}: {type(error).__name__}: {error}", flush=True)
    return failure


class RequestLog:
    """Writes a line of JSON for each request: ids, times, counts and ends. No text, unless it is asked for.

    Args:
        path: appended to.
        with_text: whether prompts and completions are written as well.
    """

    def __init__(self, path: Path, *, with_text: bool = False) -> None:
        self.with_text = with_text
        self._stream: IO[str] = path.open("a", buffering=1)

    def write(self, record: Record) -> None:
        """Write the line of a request that has ended."""
        entry: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": record.request_id,
            "method": record.method,
            "path": record.path,
            "key": record.key.name if record.key else None,
            "status": record.status,
            "end": record.end,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_ms": None if record.first_token is None else round(record.first_token * 1e3, 1),
            "total_ms": round(record.seconds * 1e3, 1),
        }
        entry |= {"trace": record.trace_id} if record.trace_id else {}
        self._stream.write(json.dumps(entry | (record.text or {})) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
