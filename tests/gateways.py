"""A gateway in front of the tests' real server, and ways to call it."""

import contextlib
import json
import shutil
import socket
import urllib.error
import urllib.request

from hebbline.serve.openai.app import Gateway
from hebbline.serve.openai.catalogue import no_further_models
from hebbline.serve.openai.config import GatewayConfig
from hebbline.serve.openai.server import GatewayServer
from hebbline.serve.triton.process import free_ports

TEMPLATE = """{%- if tools %}<|tools|>
{%- for tool in tools %}{{ tool.function | tojson }}{% endfor %} answer with <tool_call>{"name": …}</tool_call>
{%- endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""


def with_template(artifact, directory):
    """A copy of an artifact that has a chat template."""
    shutil.copytree(artifact, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@contextlib.contextmanager
def running_gateway(artifact, server, *, further=no_further_models, credentials=None, tracing=None, **options):
    """A gateway that serves in a thread of this process."""
    config = GatewayConfig(port=free_ports().grpc, **options)
    metrics_url = f"http://127.0.0.1:{server.ports.metrics}/metrics"
    gateway = Gateway(
        config, artifact, server.grpc_url, metrics_url, further=further, credentials=credentials, tracing=tracing
    )
    server.on_restart = gateway.metrics.restarts.inc
    running = GatewayServer(gateway)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def call(gateway, path, body=None, key=None, method=None, headers=None, context=None):
    """The status, the content and the headers of one request; `body` is sent as JSON, or as it is where it is bytes."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{gateway.url}{path}", data, method=method, headers=headers or {})
    if data is not None:
        request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            return response.status, read(response), response.headers
    except urllib.error.HTTPError as error:
        return error.code, read(error), error.headers


def read(response):
    text = response.read().decode()
    return json.loads(text) if response.headers.get_content_type() == "application/json" else text


def raw(port, content):
    """All that comes back for a request's bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(content)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    return answer
