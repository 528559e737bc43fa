"""TLS and mutual TLS on Triton's own gRPC service: who is let in, and by which clients."""

import asyncio

import grpc
import pytest
from gateways import call, running_gateway
from tritonclient.grpc import service_pb2, service_pb2_grpc

from hebbline.artifacts import CheckError, InputError
from hebbline.cli import main
from hebbline.serve.async_client import NO_RETRIES, AsyncClient
from hebbline.serve.client import Client
from hebbline.serve.client_errors import ServerUnavailableError
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.tls import ServerTls, channel_credentials
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings

PROMPT = "the quick"
TWO = SamplingParameters(max_tokens=2)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory, tiny_artifact, certificates):
    """A server whose gRPC asks for the certificates of clients."""
    directory = tmp_path_factory.mktemp("tls")
    fill_repository(tiny_artifact, directory / "repository", Settings(slots=2, threads=1))
    tls = ServerTls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1, tls=tls) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def known(certificates):
    return channel_credentials(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")


def test_who_shows_a_certificate_is_served(tls_server, known):
    with Client(tls_server.grpc_url, 60, credentials=known) as client:
        client.wait_ready(30)
        expected = client.complete(PROMPT, TWO).text

    async def ask():
        async with AsyncClient(tls_server.grpc_url, 60, credentials=known) as asynchronous:
            await asynchronous.wait_ready()
            return (await asynchronous.complete(PROMPT, TWO)).text

    assert asyncio.run(ask()) == expected


def strangers(certificates):
    return {
        "without TLS": None,
        "without a certificate": channel_credentials(certificates / "ca.pem"),
        "with its own authority's certificate": channel_credentials(
            certificates / "ca.pem", certificates / "stranger.pem", certificates / "stranger.key"
        ),
        "that does not trust the server": channel_credentials(
            certificates / "stranger.pem", certificates / "client.pem", certificates / "client.key"
        ),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "without TLS",
        "without a certificate",
        "with its own authority's certificate",
        "that does not trust the server",
    ],
)
def test_nobody_else_is(tls_server, certificates, kind):
    credentials = strangers(certificates)[kind]
    with (
        Client(tls_server.grpc_url, 5, credentials=credentials) as client,
        pytest.raises((InputError, CheckError), match=r"no server answers|did not answer"),
    ):
        client.complete(PROMPT, TWO)

    async def ask():
        async with AsyncClient(tls_server.grpc_url, 5, NO_RETRIES, credentials) as asynchronous:
            await asynchronous.complete(PROMPT, TWO)

    with pytest.raises(ServerUnavailableError, match="no server answers"):
        asyncio.run(ask())


def test_the_control_plane_is_closed_to_those_too(tls_server, known):
    with grpc.secure_channel(tls_server.grpc_url, known) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)


def test_a_gateway_goes_through_it(tls_server, tiny_artifact, known):
    body = {"model": "llm", "prompt": PROMPT, "max_tokens": 2}
    with running_gateway(tiny_artifact, tls_server, credentials=known) as gateway:
        assert call(gateway, "/health/ready")[0] == 200
        assert call(gateway, "/v1/completions", body)[0] == 200
    with running_gateway(tiny_artifact, tls_server) as gateway:
        status, answer, headers = call(gateway, "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (503, "server_unavailable") and headers["Retry-After"]


def test_the_command_takes_certificates(tls_server, certificates, capsys):
    files = [
        *("--server-ca", str(certificates / "ca.pem")),
        *("--client-certificate", str(certificates / "client.pem")),
        *("--client-key", str(certificates / "client.key")),
    ]
    arguments = ["query", PROMPT, "--url", tls_server.grpc_url, "--max-tokens", "2"]
    assert main([*arguments, *files]) == 0
    assert main([*arguments, *files[:4]]) == 2
    assert "go together" in capsys.readouterr().err
    assert main([*arguments, "--server-ca", "nowhere.pem"]) == 2
    assert "nowhere.pem: the PEM file cannot be read" in capsys.readouterr().err


def test_tls_without_certificates_of_clients(tiny_artifact, tmp_path, certificates):
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=1, threads=1))
    tls = ServerTls(certificates / "server.pem", certificates / "server.key")
    with TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1, tls=tls) as server:
        server.wait_ready()
        with Client(server.grpc_url, 60, credentials=channel_credentials(certificates / "ca.pem")) as client:
            client.wait_ready(30)
            assert client.complete(PROMPT, TWO).num_output_tokens == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grpc-host", "0.0.0.0"], "give --grpc-tls"),
        (["--grpc-tls"], "takes --tls-certificate and --tls-key"),
        (["--grpc-tls", "PAIR", "--grpc-host", "0.0.0.0"], "give --client-ca"),
        (["--grpc-tls", "PAIR", "--openai-port", "1"], "takes --server-ca"),
        (["PAIR"], "are for --openai-port, --grpc-tls, or both"),
        (["--grpc-tls", "--tls-certificate", "ca.pem", "--tls-key", "server.key"], "tls_certificate, tls_key"),
    ],
)
def test_options_that_would_leave_it_open_or_do_nothing_are_refused(
    options, message, tiny_artifact, certificates, monkeypatch, capsys
):
    monkeypatch.chdir(certificates)
    pair = ["--tls-certificate", "server.pem", "--tls-key", "server.key"]
    words = [word for option in options for word in (pair if option == "PAIR" else [option])]
    assert main(["serve", str(tiny_artifact), *words]) == 2
    assert message in capsys.readouterr().err
