"""Keys, limits, TLS, health, metrics and the log of the gateway, in front of the real server."""

import contextlib
import json
import os
import signal
import ssl
import time
import urllib.error

import pytest
from crowds import crowd
from gateways import call, raw, running_gateway

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.serve.openai.config import GatewayConfig
from hebbline.serve.openai.errors import ApiError
from hebbline.serve.openai.keys import Key, KeyEntry, KeyFile, add_key, read_entries, remove_key
from hebbline.serve.openai.metrics import parse_samples
from hebbline.serve.triton import probe
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings
from hebbline.serve.triton.watch import model_processes

SECRET = "the quick brown secret"
BODY = {"model": "llm", "prompt": SECRET, "max_tokens": 3, "temperature": 0}


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "keys.yaml"


@pytest.fixture
def gateway(long_artifact, server, tmp_path, keys):
    """With keys and a log."""
    keys.write_text("")
    with running_gateway(long_artifact, server, api_keys=keys, request_log=tmp_path / "log.jsonl") as running:
        yield running


@pytest.fixture(scope="module")
def open_gateway(long_artifact, server):
    with running_gateway(long_artifact, server) as running:
        yield running


def complete(gateway, key=None, **fields):
    return call(gateway, "/v1/completions", {**BODY, **fields}, key)


def error_code(answer):
    return answer[0], answer[1]["error"]["code"]


def test_only_who_has_a_key_is_served_and_a_key_is_taken_back_at_once(gateway, keys):
    key = add_key(keys, "alice")
    assert complete(gateway, key)[0] == 200
    for wrong in (None, "sk-hebbline-wrong", key[:-1], ""):
        assert error_code(complete(gateway, wrong)) == (401, "invalid_api_key")
    for path in ("/v1/models", "/metrics", "/figures"):
        assert call(gateway, path)[0] == 401 and call(gateway, path, key=key)[0] == 200
    assert call(gateway, "/health/ready")[0] == 200
    remove_key(keys, "alice")
    assert error_code(complete(gateway, key)) == (401, "invalid_api_key")


def test_the_file_holds_no_key_and_is_its_owners(keys):
    first, second = add_key(keys, "alice"), add_key(keys, "bob", requests_per_minute=3)
    text = keys.read_text()
    assert first not in text and second not in text and first != second
    assert keys.stat().st_mode & 0o77 == 0
    assert [(entry.name, entry.requests_per_minute) for entry in read_entries(keys)] == [("alice", 0), ("bob", 3)]
    with pytest.raises(InputError, match="has a key named 'bob' already"):
        add_key(keys, "bob")
    with pytest.raises(InputError, match="has no key named 'carol'"):
        remove_key(keys, "carol")


def test_the_command_prints_a_key_that_works(keys, capsys):
    assert main(["keys", "add", str(keys), "--name", "alice", "--tokens-per-minute", "100"]) == 0
    key = capsys.readouterr().out.strip()
    assert KeyFile(keys).find(key).name == "alice"
    assert main(["keys", "list", str(keys)]) == 0
    assert capsys.readouterr().out.split() == ["alice", "-", "100", "-"]


@pytest.mark.parametrize("text", ["{", "- a", "- {name: a}", "- {name: a, sha256: b}", "a: 1", "- {name: a, x: 1}"])
def test_a_malformed_file_is_refused_at_the_start_and_ignored_later(keys, text):
    keys.write_text(text)
    with pytest.raises(InputError, match=r"API keys|key has"):
        KeyFile(keys)
    keys.unlink()
    key = add_key(keys, "alice")
    file = KeyFile(keys)
    keys.write_text(text)
    assert file.find(key).name == "alice", "those who are served go on being served"


def test_limits_of_a_key():
    entry = KeyEntry("a", "0" * 64, requests_per_minute=2, tokens_per_minute=100, concurrent_requests=1)
    key = Key(entry)
    key.begin(now=0)
    with pytest.raises(ApiError, match="1 requests of this key are open already"):
        key.begin(now=1)
    key.end(10, now=1)
    key.begin(now=10)
    key.end(0, now=11)
    with pytest.raises(ApiError, match="2 requests of this key began within a minute") as caught:
        key.begin(now=20)
    assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) == 40
    key.begin(now=60)
    key.end(105, now=65)
    with pytest.raises(ApiError, match="has used 100 tokens within a minute"):
        key.begin(now=70)


def test_a_limit_reaches_the_client(gateway, keys):
    key = add_key(keys, "alice", requests_per_minute=2)
    assert [complete(gateway, key)[0] for _ in range(2)] == [200, 200]
    status, body, headers = complete(gateway, key)
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded") and 0 < int(headers["Retry-After"]) <= 61


def test_the_log_has_everything_but_text(gateway, keys, tmp_path):
    key = add_key(keys, "alice")
    _, _, headers = call(gateway, "/v1/completions", BODY, key, headers={"X-Request-Id": "mine-1"})
    complete(gateway, key, max_tokens=-1)
    complete(gateway)
    assert headers["X-Request-Id"] == "mine-1"
    text = lines_of(tmp_path / "log.jsonl", 3)
    assert key not in text and SECRET not in text
    good, wrong, nobody = map(json.loads, text.splitlines())
    assert good["id"] == "mine-1" and good["key"] == "alice" and good["status"] == 200 and good["end"] == "length"
    assert good["completion_tokens"] == 3 and good["prompt_tokens"] > 3
    assert 0 < good["first_token_ms"] <= good["total_ms"]
    assert (wrong["status"], wrong["end"], nobody["status"], nobody["end"]) == (
        400,
        "invalid_value",
        401,
        "invalid_api_key",
    )


def lines_of(log, count):
    """The log's text once it has so many lines: a line is written when its answer has gone out."""
    deadline = time.monotonic() + 30
    while len((text := log.read_text()).splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return text


def test_text_is_logged_where_it_is_asked_for(long_artifact, server, tmp_path):
    log = tmp_path / "log.jsonl"
    with running_gateway(long_artifact, server, request_log=log, log_text=True) as gateway:
        answer = complete(gateway)[1]
    entry = json.loads(log.read_text())
    assert entry["prompt"] == SECRET and entry["completion"] == answer["choices"][0]["text"]


def test_metrics_count_what_happens(open_gateway):
    def samples():
        return parse_samples(call(open_gateway, "/metrics")[1], "hebbline_")

    before = samples()
    complete(open_gateway, max_tokens=7)
    complete(open_gateway, model="gpt")
    after = samples()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["hebbline_gateway_completion_tokens_total"] == 7
    assert grown["hebbline_gateway_prompt_tokens_total"] > 3
    assert grown["hebbline_gateway_time_to_first_token_seconds_count"] == 1
    assert grown["hebbline_gateway_token_gap_seconds_count"] == 6
    assert grown["hebbline_gateway_refusals_total"] == 1
    text = call(open_gateway, "/metrics")[1]
    assert 'hebbline_gateway_refusals_total{reason="model_not_found"}' in text
    assert "nv_inference_request_success" in text, "Triton's own are there as well"
    assert after["hebbline_generated_tokens_total"] > 0 and "hebbline_waiting" in after, "and the model's"
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    assert call(open_gateway, "/figures")[1]["tokens_per_second"] > 0


def test_ready_means_that_a_token_comes(tiny_artifact, tmp_path, monkeypatch):
    """A model that hangs is not ready, though it is loaded; the server is replaced, and the gateway finds it."""
    monkeypatch.setattr(probe, "HUNG_SECONDS", 4.0)
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=2, threads=1))
    with (
        TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server,
        running_gateway(tiny_artifact, server) as gateway,
    ):
        status, body, _ = call(gateway, "/health/ready")
        assert status == 503 and "no server answers" in body["reason"]
        server.wait_ready()
        wait_until_ready(gateway)
        time.sleep(2.1)  # until the last token is too old to show anything
        (model,) = model_processes(server.pid)
        os.kill(model.pid, signal.SIGSTOP)
        status, body, _ = call(gateway, "/health/ready")
        assert (status, body["status"]) == (503, "not ready") and body["reason"]
        assert call(gateway, "/health/live")[0] == 200
        wait_until_ready(gateway)
        assert (
            parse_samples(call(gateway, "/metrics")[1], "hebbline_gateway_")["hebbline_gateway_server_restarts_total"]
            == 1
        )


def wait_until_ready(gateway):
    deadline = time.monotonic() + 60
    while call(gateway, "/health/ready")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[" * 200_000, 400),
        (b'{"model": "llm", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"model": "llm", "prompt": "\\ud800", "max_tokens": 1}', 400),
        (b'{"model": "llm", "prompt": "a", "temperature": NaN}', 400),
        (b'{"model": "llm", "prompt": "a", "max_tokens": 99999999999999999999}', 400),
        (b"\xff\xfe", 400),
        (b"null", 400),
        (b"", 400),
        (b"x" * 40_000_000, 413),
    ],
)
def test_bodies_that_are_none_are_refused(open_gateway, content, status):
    with contextlib.suppress(urllib.error.URLError):  # the connection is reset where a body is refused unread
        answer = call(open_gateway, "/v1/completions", content)
        assert answer[0] == status and answer[1]["error"]["message"]
    assert complete(open_gateway)[0] == 200


def test_a_body_without_a_length_is_bounded_as_well(open_gateway):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = raw(open_gateway.port, head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 30)
    assert not answer or b" 413 " in answer.splitlines()[0]
    assert complete(open_gateway)[0] == 200


def test_other_paths_and_methods_are_refused_in_the_same_form(open_gateway):
    assert error_code(call(open_gateway, "/v1/nothing")) == (404, "not_found")
    assert error_code(call(open_gateway, "/v1/completions", method="DELETE")) == (405, "not_found")
    assert call(open_gateway, "/docs")[0] == 404


def test_a_busy_server_is_said_to_be_busy(open_gateway, server):
    with crowd(server.grpc_url):
        _, answer, headers = until_status(open_gateway, 429)
    assert answer["error"]["code"] == "server_busy" and headers["Retry-After"] == "1"
    until_status(open_gateway, 200)


def until_status(gateway, status, seconds=30):
    """The first answer with this status, within `seconds`."""
    deadline = time.monotonic() + seconds
    while (answer := complete(gateway))[0] != status:
        assert time.monotonic() < deadline, answer
    return answer


def test_tls_and_certificates_of_clients(long_artifact, server, certificates):
    files = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
    trusting = ssl.create_default_context(cafile=certificates / "ca.pem")
    with running_gateway(long_artifact, server, **files) as gateway:
        assert gateway.url.startswith("https://")
        assert call(gateway, "/v1/completions", BODY, context=trusting)[0] == 200
        with pytest.raises(OSError, match="certificate verify failed"):
            call(gateway, "/health/live", context=ssl.create_default_context())
    with running_gateway(long_artifact, server, **files, client_ca=certificates / "ca.pem") as gateway:
        with pytest.raises(OSError):
            call(gateway, "/health/live", context=trusting)
        trusting.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert call(gateway, "/v1/completions", BODY, context=trusting)[0] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"port": 0}, "port 0"),
        ({"api_keys": "missing"}, "api_keys: there is no file"),
        ({"tls_key": "missing"}, "go together"),
        ({"client_ca": "missing"}, "client_ca takes tls_certificate"),
        ({"log_text": True}, "log_text takes request_log"),
    ],
)
def test_unsafe_and_impossible_configurations_are_refused(options, message, tmp_path):
    paths = {name: tmp_path / value for name, value in options.items() if value == "missing"}
    with pytest.raises(InputError, match=message):
        GatewayConfig(**{"port": 8080, **options, **paths})
