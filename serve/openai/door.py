"""What every request passes before it is looked into: keys, limits of size, ids, headers; and the log after."""

import re
import secrets
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import JsonAnswer
from .errors import INVALID, ApiError
from .keys import Key, KeyFile
from .metrics import Metrics
from .records import Record, RequestLog, said
from .tracing import Tracing

RECORD = "hebbline.record"
"""Where a request's scope holds its record."""
OPEN_PATHS = ("/health/live", "/health/ready", "/", "/page.css", "/page.js")
"""What needs no key: it tells nothing, or is the page on which a key can be given."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    b"cache-control": b"no-store",
}


class Door:
    """ASGI middleware; the innermost part of it is the application.

    Args:
        application: what the requests are for.
        metrics: where their ends are counted.
        keys: None: no key is asked for.
        log: None: no log.
        max_body_bytes: gives the size above which a body is refused before it is read.
        paths: those that metrics name; any other counts as "other".
        tracing: None: no traces.
    """

    def __init__(
        self,
        application: ASGIApp,
        metrics: Metrics,
        keys: KeyFile | None,
        log: RequestLog | None,
        max_body_bytes: Callable[[], int],
        paths: frozenset[str],
        tracing: Tracing | None = None,
    ) -> None:
        self._application = application
        self._metrics = metrics
        self._keys = keys
        self._log = log
        self._max_body_bytes = max_body_bytes
        self._paths = paths
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = dict(scope["headers"])
        record = Record(_request_id(headers), scope["method"], scope["path"])
        if self._log is not None and self._log.with_text:
            record.text = {}
        scope[RECORD] = record
        counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"
        self._metrics.open.inc(counted)
        try:
            await self._serve(scope, receive, _sender(send, record), headers, record, counted)
        finally:
            self._metrics.open.dec(counted)
            self._finish(record, headers if counted else None)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], record: Record, counted: bool
    ) -> None:
        begun: Key | None = None
        try:
            record.key = self._key(scope, headers)
            if counted and record.key is not None:
                record.key.begin()
                begun = record.key
            receive = self._bounded(headers, receive)
            await self._application(scope, receive, send)
        except Exception as error:
            if record.status:
                raise  # the answer has begun, or has been given
            failure = said(error, record)
            record.end = failure.reason
            await JsonAnswer(failure.body, failure.status, failure.headers)(scope, receive, send)
        finally:
            if begun is not None:
                begun.end(record.prompt_tokens + record.completion_tokens)

    def _key(self, scope: Scope, headers: dict[bytes, bytes]) -> Key | None:
        """The key of a request; raises ApiError (401) where it takes one and has none, or an unknown one."""
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = self._keys.find(presented.strip()) if kind.lower() == "bearer" else None
        if key is None:
            message = "the API key is not known" if presented else "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, INVALID, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return key

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The body, refused (413) as soon as it is too large, by what it says of itself or by what comes."""
        declared = headers.get(b"content-length", b"0")
        most = left = self._max_body_bytes()
        if declared.isdigit() and int(declared) > left:
            raise _too_large(most)

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(most)
            return message

        return bounded

    def _finish(self, record: Record, traced: dict[bytes, bytes] | None) -> None:
        """Count and log a request that has ended; `traced` are the headers of one that is traced."""
        path = record.path if record.path in self._paths else "other"
        record.status = record.status or 499
        record.end = record.end or ("disconnected" if record.status == 499 else "")
        self._metrics.count_end(record, path)
        if self._tracing is not None and traced is not None:
            self._tracing.finish(record, traced)
        if self._log is not None:
            self._log.write(record)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", code="request_too_large")


def _sender(send: Send, record: Record) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            given += [(name, value) for name, value in _HEADERS.items() if name not in names]
            message = {**message, "headers": [*given, (b"x-request-id", record.request_id.encode())]}
        await send(message)

    return sending


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
