"""A gateway in a process of its own, whose processor time can be told from the others'."""

import socket
import subprocess
import sys
import time
from pathlib import Path

from ..artifacts import CheckError
from ..serve.triton.process import HOST, free_ports

START_SECONDS = 60.0
MODEL_NAME = "llm"


class GatewayProcess:
    """`hebbline gateway` from the beginning of a `with` block to its end.

    Args:
        artifact: what the server serves.
        grpc_url: host:port of the server.
        log: what it says is written here.
    """

    def __init__(self, artifact: Path, grpc_url: str, log: Path) -> None:
        self._log = log
        self._port = free_ports().grpc
        self.url = f"http://{HOST}:{self._port}"
        arguments = [str(artifact), "--url", grpc_url, "--port", str(self._port), "--model-name", MODEL_NAME]
        self._command = [sys.executable, "-m", "hebbline", "gateway", *arguments]

    def __enter__(self) -> "GatewayProcess":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise CheckError(f"the gateway did not start: {self._log.read_text()[-500:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self._port)) == 0
