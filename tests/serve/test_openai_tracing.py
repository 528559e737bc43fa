"""Traces of the gateway's requests: their spans, the client's trace, and that no text is in them."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from gateways import call, running_gateway

from hebbline.artifacts import InputError
from hebbline.cli import main

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="pip install 'hebbline[tracing]'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from hebbline.serve.openai.tracing import Tracing, collector_provider  # noqa: E402

SECRET = "the quick brown secret"
BODY = {"model": "llm", "prompt": SECRET, "max_tokens": 8, "temperature": 0}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def gateway(long_artifact, server, exporter, tmp_path):
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    log = tmp_path / "log.jsonl"
    with running_gateway(long_artifact, server, tracing=Tracing(provider), request_log=log) as running:
        yield running


def spans_of(gateway, exporter):
    """All spans, once the gateway has ended what it does after an answer."""
    gateway.stop()
    return exporter.get_finished_spans()


def sampled(flags):
    return {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}


def test_a_request_has_a_span_with_its_phases_in_the_clients_trace(gateway, exporter, tmp_path):
    answer = call(gateway, "/v1/completions", BODY, headers={**sampled("01"), "X-Request-Id": "mine"})[1]
    queue_span, prompt, decode, request = spans_of(gateway, exporter)
    assert [span.name for span in (queue_span, prompt, decode, request)] == [
        "queue",
        "prompt",
        "decode",
        "POST /v1/completions",
    ]
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    for phase in (queue_span, prompt, decode):
        assert phase.context.trace_id == request.context.trace_id
        assert phase.parent.span_id == request.context.span_id
        assert request.start_time <= phase.start_time <= phase.end_time <= request.end_time
    assert queue_span.end_time == prompt.start_time and prompt.end_time == decode.start_time
    assert decode.end_time > decode.start_time and prompt.end_time > prompt.start_time
    attributes = dict(request.attributes)
    assert attributes["gen_ai.usage.output_tokens"] == 8 == answer["usage"]["completion_tokens"]
    assert attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert (attributes["http.response.status_code"], attributes["hebbline.end"]) == (200, "length")
    assert (attributes["gen_ai.request.model"], attributes["hebbline.request_id"]) == ("llm", "mine")
    entry = json.loads((tmp_path / "log.jsonl").read_text())
    assert entry["trace"] == TRACE


def test_nothing_of_a_text_is_in_a_trace(gateway, exporter):
    said = call(gateway, "/v1/completions", {**BODY, "max_tokens": 40})[1]["choices"][0]["text"]
    call(gateway, "/v1/completions", {**BODY, "stop": SECRET, "temperature": -1})
    text = " ".join(span.to_json() for span in spans_of(gateway, exporter))
    assert SECRET not in text and said not in text


def test_each_completion_of_a_request_has_its_phases(gateway, exporter):
    call(gateway, "/v1/completions", {**BODY, "n": 2, "temperature": 1, "seed": 1})
    names = [(span.name, span.attributes.get("hebbline.choice")) for span in spans_of(gateway, exporter)[:-1]]
    assert sorted(names) == [(name, choice) for name in ("decode", "prompt", "queue") for choice in (0, 1)]


def test_what_is_refused_and_what_is_not_sampled(gateway, exporter):
    call(gateway, "/v1/completions", {**BODY, "model": "other"})
    call(gateway, "/v1/completions", BODY, headers=sampled("00"))
    call(gateway, "/v1/completions", BODY, headers={"traceparent": "nonsense"})
    call(gateway, "/health/live")
    requests = [span for span in spans_of(gateway, exporter) if span.name.startswith("POST")]
    assert len(requests) == 2
    assert requests[0].attributes["error.type"] == "model_not_found"
    assert requests[1].parent is None


class Collector(HTTPServer):
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self):
        self.requests = queue.Queue()
        super().__init__(("127.0.0.1", 0), Taker)


class Taker(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.put((self.path, self.headers, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_collector_gets_the_spans(long_artifact, server):
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    tracing = Tracing(collector_provider(f"http://127.0.0.1:{collector.server_port}"))
    with running_gateway(long_artifact, server, tracing=tracing) as gateway:
        call(gateway, "/v1/completions", BODY, headers=sampled("01"))
    path, headers, body = collector.requests.get(timeout=20)
    collector.shutdown()
    collector.server_close()
    if headers.get("Content-Encoding") == "gzip":
        import gzip

        body = gzip.decompress(body)
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert path == "/v1/traces" and len(spans) == 4
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"] == [
        "hebbline-gateway"
    ]


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://a", ""])
def test_what_is_no_address_is_refused(endpoint, tiny_artifact, capsys):
    with pytest.raises(InputError, match="no address such as"):
        collector_provider(endpoint)
    assert main(["gateway", str(tiny_artifact), "--otlp-endpoint", endpoint]) == 2
    assert "otlp_endpoint" in capsys.readouterr().err
