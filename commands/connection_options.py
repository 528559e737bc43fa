"""The options by which commands reach a server: its address, the model on it, and certificates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Parser

if TYPE_CHECKING:
    import grpc

    from ..serve.client import Client

DEFAULT_URL = "127.0.0.1:8001"


def add_connection_options(parser: Parser, default_url: str | None = DEFAULT_URL) -> None:
    """Add address and certificates to a parser."""
    parser.add_argument("--url", type=str, default=default_url, help="host:port of the server's gRPC service")
    add_certificate_options(parser)


def add_certificate_options(parser: Parser) -> None:
    """Add what a client trusts and shows where the server's gRPC service has TLS."""
    for name, text in (
        ("--server-ca", "PEM file: the server's gRPC has TLS, and a certificate that these have signed"),
        ("--client-certificate", "PEM file: shown to a server that asks for certificates"),
        ("--client-key", "PEM file of that certificate's key"),
    ):
        parser.add_argument(name, type=Path, default=None, help=text)


def credentials(values: Any) -> "grpc.ChannelCredentials | None":
    """From parsed options; InputError where a file is missing."""
    from ..serve.tls import channel_credentials

    return channel_credentials(values.server_ca, values.client_certificate, values.client_key)


def connect(values: Any, model: str | None = None) -> "Client":
    """A client of the server that parsed options name; `model` is its name there, None: `llm`."""
    from ..serve.client import Client
    from ..serve.triton.settings import MODEL_NAME

    return Client(values.url, model=model or MODEL_NAME, credentials=credentials(values))
