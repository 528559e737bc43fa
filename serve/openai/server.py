"""The gateway as a server: in a thread beside the one that watches Triton, or as a process of its own."""

import socket
import threading
import time

import uvicorn

from ...artifacts import CheckError, InputError
from .app import Gateway

START_SECONDS = 30.0
DRAIN_SECONDS = 5


class GatewayServer:
    """Runs a gateway; `start` and `stop` it, or `run` it until a signal comes."""

    def __init__(self, gateway: Gateway) -> None:
        self._config = gateway.config
        options = uvicorn.Config(
            gateway.application,
            host=self._config.host,
            port=self._config.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=64 << 10,
            limit_concurrency=4096,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            **self._config.uvicorn_options(),
        )
        self._server = uvicorn.Server(options)
        self._thread = threading.Thread(target=self._server.run, name="hebbline-gateway", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._config.port

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        return self._config.url

    @property
    def model_name(self) -> str:
        """By which requests call the model."""
        return self._config.model_name

    def check_free(self) -> None:
        """Raise InputError where the address cannot be listened at."""
        try:
            family = socket.getaddrinfo(self._config.host, self._config.port, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self._config.host, self._config.port))
        except OSError as error:
            raise InputError(f"gateway at {self._config.host}:{self._config.port}: {error.strerror}") from error

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, from the main thread."""
        self.check_free()
        self._server.run()

    def start(self) -> None:
        """Serve from a thread; CheckError where it does not come up."""
        self.check_free()
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise CheckError(f"the gateway did not start at {self._config.url}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the thread; open requests get some seconds to finish."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
