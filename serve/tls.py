"""Certificates: what a server shows and asks for, and what a client of gRPC trusts and shows."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from ..artifacts import InputError


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server; wrong ones raise InputError.

    Attributes:
        certificate, key: its own.
        client_ca: of those who sign clients' certificates, which are asked for then; None: of none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"tls_certificate, tls_key, client_ca: {error}") from error

    def triton_flags(self) -> list[str]:
        """Those by which Triton serves gRPC with them."""
        flags = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate.absolute()}",
            f"--grpc-server-key={self.key.absolute()}",
        ]
        if self.client_ca is not None:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca.absolute()}"]
        return flags


def channel_credentials(
    authority: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials | None:
    """The credentials of a client, for its connection to a server with TLS; None where no file is given.

    Args:
        authority: a PEM file of those whose signature a server's certificate has to have; None: those of the system.
        certificate, key: PEM files of the client's own, for a server that asks for one; both or none.

    Raises:
        InputError: a file cannot be read, or one of the two is missing.
    """
    if authority is None and certificate is None and key is None:
        return None
    if (certificate is None) != (key is None):
        raise InputError("a client's certificate and its key go together: give both or none")
    contents = [None if path is None else _read(path) for path in (authority, key, certificate)]
    return grpc.ssl_channel_credentials(*contents)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the PEM file cannot be read: {error.strerror}") from error
