"""Traces of requests in OpenTelemetry's form: one span for each request, and in it its queue, prompt and decoding.

A client's trace goes on here, by W3C's header `traceparent`. Spans hold names, counts and ends, and no text. They are
made when a request has ended, from the moments that were noted meanwhile, and are sent from a thread of the SDK's.
Attributes have the names of OpenTelemetry's conventions for HTTP and generative models.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...artifacts import InputError
from .records import Phases, Record

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

INSTALL = "pip install 'hebbline[tracing]'"
SERVICE = "hebbline-gateway"
TRACES_PATH = "/v1/traces"
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat"}


def collector_provider(endpoint: str) -> "TracerProvider":
    """What sends spans to a collector, by OTLP over HTTP.

    Args:
        endpoint: such as http://127.0.0.1:4318; a path other than the usual one may be named.

    Raises:
        InputError: it is no URL of HTTP, or OpenTelemetry's packages are missing.
    """
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(f"otlp_endpoint: '{endpoint[:80]}' is no address such as http://127.0.0.1:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(f"otlp_endpoint: traces need OpenTelemetry's packages: {INSTALL}") from error
    path = TRACES_PATH if address.path in ("", "/") else address.path
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}))
    exporter = OTLPSpanExporter(address._replace(path=path).geturl())
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: of the SDK; it is shut down by `close`.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("hebbline")

    def finish(self, record: Record, headers: Mapping[bytes, bytes]) -> None:
        """Make the spans of a request that has ended, within the trace that its client named."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        clock = _Clock()
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        parent = TraceContextTextMapPropagator().extract(carrier)
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            parent,
            SpanKind.SERVER,
            _attributes(record),
            start_time=clock.nanoseconds(record.started),
        )
        if record.status >= 500:
            _set_error(span, record.end)
        context = set_span_in_context(span, parent)
        for phases in record.phases:
            self._finish_phases(phases, context, clock)
        span.end(clock.nanoseconds(time.monotonic()))
        record.trace_id = f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _finish_phases(self, phases: Phases, context: "Context", clock: "_Clock") -> None:
        begin = phases.sent
        for name, seconds in phases.durations():
            start, begin = begin, begin + seconds
            attributes = {"hebbline.choice": phases.choice}
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=clock.nanoseconds(start))
            span.end(clock.nanoseconds(begin))


class _Clock:
    """Moments of the monotonic clock as nanoseconds since 1970."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def nanoseconds(self, moment: float) -> int:
        return int((moment + self._offset) * 1e9)


def _attributes(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": record.method,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "gen_ai.operation.name": _OPERATIONS.get(record.path),
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "hebbline.request_id": record.request_id,
        "hebbline.end": record.end,
        "hebbline.key": record.key.name if record.key else None,
        "error.type": record.end if record.status >= 400 else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _set_error(span: Any, reason: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, reason))
