"""How a gateway reaches its server."""

from dataclasses import dataclass

import grpc

from ..async_client import AsyncClient, Retries


@dataclass(frozen=True)
class Connection:
    """The server's gRPC service.

    Attributes:
        url: host:port.
        seconds: that a request may take in all.
        credentials: where it has TLS, see `hebbline.serve.tls`; None: it has none.
    """

    url: str
    seconds: float = 600.0
    credentials: grpc.ChannelCredentials | None = None

    def client(self, model: str, retries: Retries | None = None) -> AsyncClient:
        """A client of one of the server's models, for the running event loop."""
        return AsyncClient(self.url, self.seconds, retries, self.credentials, model)
