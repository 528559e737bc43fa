"""How a gateway is set up."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import InputError
from ..addresses import LOOPBACK, client_host, is_loopback
from ..tls import ServerTls


@dataclass(frozen=True)
class GatewayConfig:
    """Where a gateway listens, and who may come in; wrong values raise InputError with the field's name.

    Attributes:
        port: of HTTP, or HTTPS where there is a certificate.
        host: the address to listen at. Any but a loopback one takes API keys or client certificates.
        model_name: by which requests call the model.
        api_keys: a file that `hebbline keys` keeps; None: no key is asked for.
        tls_certificate, tls_key: PEM files; both or none.
        client_ca: a PEM file of those who sign client certificates, which are asked for then.
        request_log: a file that gets a line of JSON for each request; None: no log.
        log_text: whether prompts and completions are in it as well.
        request_seconds: that a request may take in all.
    """

    port: int
    host: str = LOOPBACK
    model_name: str = "llm"
    api_keys: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    request_log: Path | None = None
    log_text: bool = False
    request_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"port {self.port} is not between 1 and 65535")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InputError("tls_certificate and tls_key go together: give both or none")
        if self.client_ca is not None and self.tls_certificate is None:
            raise InputError("client_ca takes tls_certificate and tls_key: client certificates come by TLS")
        if not self.is_local and self.api_keys is None and self.client_ca is None:
            raise InputError(
                f"host {self.host} can be reached from other machines: give api_keys or client_ca, so that not "
                f"everyone is served (or host {LOOPBACK})"
            )
        if self.log_text and self.request_log is None:
            raise InputError("log_text takes request_log: the file that prompts and completions are written to")
        for name in ("api_keys", "tls_certificate", "tls_key", "client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InputError(f"{name}: there is no file {path}")
        if self.tls_certificate is not None and self.tls_key is not None:
            ServerTls(self.tls_certificate, self.tls_key, self.client_ca)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        scheme = "http" if self.tls_certificate is None else "https"
        return f"{scheme}://{client_host(self.host)}:{self.port}"

    def uvicorn_options(self) -> dict[str, Any]:
        """What uvicorn is told of TLS."""
        if self.tls_certificate is None:
            return {}
        options: dict[str, Any] = {"ssl_certfile": str(self.tls_certificate), "ssl_keyfile": str(self.tls_key)}
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options
