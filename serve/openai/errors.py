"""Errors in the form that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}` with a status."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException

from ...artifacts import InputError
from ..client_errors import DeadlineError, NoModelError, ServerBusyError, ServerUnavailableError

INVALID = "invalid_request_error"
INTERNAL = "internal_error"
"""The code of failures that a client is told nothing of."""
_PARAMETER = re.compile(r"([a-z][a-z_0-9]*)\b")
_OUR_NAMES = {"input_ids": "prompt", "text_input": "prompt", "json_schema": "response_format", "the": None}


class ApiError(HTTPException):
    """A request that is refused or has failed.

    It is one of Starlette's own exceptions, as FastAPI hides any other that comes up while it reads a body.

    Args:
        status: of HTTP.
        message: for people.
        kind: OpenAI's `type`.
        code: for programs; it is also the reason under which metrics count the refusal.
        param: the field that is wrong.
        headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """The response's content."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def reason(self) -> str:
        """A word for metrics and the log."""
        return self.code or self.kind


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that asks for what cannot be."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: Exception, parameters: Sequence[str] = ()) -> ApiError:
    """Any failure of a request as what its client is told; `parameters` are the names that a request may have."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return invalid(str(error), _named(str(error), parameters))
    if isinstance(error, NoModelError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, ServerBusyError):
        return ApiError(429, str(error), "rate_limit_error", "server_busy", headers={"Retry-After": "1"})
    if isinstance(error, ServerUnavailableError):
        return ApiError(503, str(error), "server_error", "server_unavailable", headers={"Retry-After": "2"})
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), "server_error", "deadline_exceeded")
    return ApiError(500, "the server failed; its log says how", "server_error", INTERNAL)


def _named(message: str, parameters: Sequence[str]) -> str | None:
    """The field with which a message begins."""
    match = _PARAMETER.match(message)
    name = match[1] if match else None
    return _OUR_NAMES.get(name, name if name in parameters else None) if name else None
