"""The options by which `hebbline serve` opens Triton's own gRPC service to other machines, and what they ask for."""

from typing import Any

from ..artifacts import InputError
from ..console import Parser
from ..serve.addresses import LOOPBACK, is_loopback
from ..serve.tls import ServerTls
from .connection_options import add_certificate_options


def add_grpc_options(parser: Parser) -> None:
    """Add them to a parser that has the gateway's."""
    parser.add_argument(
        "--grpc-tls", action="store_true", help="serve gRPC with --tls-certificate, and ask for --client-ca's"
    )
    parser.add_argument("--grpc-host", type=str, default=LOOPBACK, help="the address at which gRPC listens")
    add_certificate_options(parser)


def grpc_tls(values: Any) -> ServerTls | None:
    """The certificates of the gRPC service; None where it has none.

    Raises:
        InputError: an option lacks another one, without which it would do nothing or leave the service open.
    """
    if not values.grpc_tls:
        if not is_loopback(values.grpc_host):
            raise InputError(f"--grpc-host {values.grpc_host} can be reached from other machines: give --grpc-tls")
        if values.openai_port is None and (values.tls_certificate or values.tls_key or values.client_ca):
            raise InputError("--tls-certificate, --tls-key, --client-ca are for --openai-port, --grpc-tls, or both")
        return None
    if values.tls_certificate is None or values.tls_key is None:
        raise InputError("--grpc-tls takes --tls-certificate and --tls-key")
    if not is_loopback(values.grpc_host) and values.client_ca is None:
        raise InputError(
            f"--grpc-host {values.grpc_host} can be reached from other machines: give --client-ca, so that not "
            f"everyone is served"
        )
    if values.openai_port is not None and values.server_ca is None:
        raise InputError("--grpc-tls beside --openai-port takes --server-ca: what OpenAI's API trusts in gRPC")
    return ServerTls(values.tls_certificate, values.tls_key, values.client_ca)
