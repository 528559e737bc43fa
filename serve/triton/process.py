"""The server's process: its command line, its readiness, its log, and its end."""

import contextlib
import ctypes
import http.client
import os
import random
import re
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...artifacts import InputError
from ..tls import ServerTls
from .settings import BATCHED_NAME, CONTROL_NAME, MODEL_NAME
from .wanted import cannot, read_wanted
from .wheel import TritonWheel

HOST = "127.0.0.1"
RESTRICTED_APIS = "model-repository,shared-memory,trace,logging"
KEY_HEADER = "no:body"
"""The header that Triton asks of those who call a restricted API. No client can send one: a colon ends a header's name
in HTTP, and gRPC refuses it in names. So nobody gets in, not even who reads the key in the server's command line."""
SHARED_MEMORY = Path("/dev/shm")
HARMLESS_ERRORS = ("CudaDriverHelper", "HandleCancellation")
_READ_BY_SHELL = re.compile(r"""[\s'"\\$`&|;<>()]""")
_TRITONS = re.compile(r"[IWEF]\d{4} |[+|]")
"""How Triton's own lines begin, and the tables that it prints."""
_PR_SET_PDEATHSIG = 1
_PORT_RANGE = (20_000, 32_000)


@dataclass(frozen=True)
class Ports:
    """The three ports of a server; each must be another one."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002

    def __post_init__(self) -> None:
        for name, port in self._by_name().items():
            if not 1 <= port <= 65535:
                raise InputError(f"{name} port {port} is not between 1 and 65535")
        if len(set(self._by_name().values())) < 3:
            raise InputError(f"ports {self.grpc}, {self.http} and {self.metrics}: each must be another one")

    def check_free(self) -> None:
        """Raise InputError naming a port that is in use."""
        for name, port in self._by_name().items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise InputError(f"{name} port {port}: {os.strerror(error.errno or 0)}") from error

    def _by_name(self) -> dict[str, int]:
        return {"grpc": self.grpc, "http": self.http, "metrics": self.metrics}


def free_ports() -> Ports:
    """Three free ports below the range from which outgoing connections take theirs."""
    ports: list[int] = []
    while len(ports) < 3:
        port = random.SystemRandom().randint(*_PORT_RANGE)  # not what a training run has seeded
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex((HOST, port)) != 0:
                ports.append(port)
    return Ports(*ports)


def models_at_start(controlled: bool) -> list[str]:
    """The models that a server loads when it starts; `controlled`: the last of them loads the further ones."""
    return [MODEL_NAME, BATCHED_NAME, *([CONTROL_NAME] if controlled else [])]


def processes_at_start(controlled: bool) -> list[str]:
    """Those of them that run in a process of their own."""
    return [name for name in models_at_start(controlled) if name != BATCHED_NAME]


def server_flags(
    repository: str,
    ports: Ports,
    key: str,
    *,
    grpc_address: str = HOST,
    models: Sequence[str] = (MODEL_NAME, BATCHED_NAME),
    tls: ServerTls | None = None,
) -> list[str]:
    """The flags of every Triton that serves our model, here or in a container: nothing is open but inference.

    With a model its code can be loaded, and the other restricted APIs reach files and memory.

    Args:
        repository: the model repository, as the server finds it.
        ports: where the server listens. Metrics and HTTP stay on the loopback interface.
        key: a secret that nobody is told, for the restricted APIs.
        grpc_address: the interface of the gRPC service, the one that is made for other machines.
        models: that are loaded at the start.
        tls: certificates of the gRPC service; None: it has no TLS.
    """
    restricted = f"{RESTRICTED_APIS}:{KEY_HEADER}={key}"
    return [
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",
        f"--grpc-address={grpc_address}",
        f"--http-address={HOST}",
        f"--metrics-address={HOST}",
        f"--grpc-port={ports.grpc}",
        f"--http-port={ports.http}",
        f"--metrics-port={ports.metrics}",
        f"--grpc-restricted-protocol={restricted}",
        f"--http-restricted-api={restricted}",
        *(tls.triton_flags() if tls is not None else ()),
    ]


@dataclass(frozen=True)
class ServerCommand:
    """What to run: the wheel's server on a repository, with assembled backends.

    Raises:
        InputError: a path that Triton cannot pass on to the model's process, for which it makes a line for a shell.
    """

    wheel: TritonWheel
    backends: Path
    repository: Path
    ports: Ports
    exit_timeout: int
    grpc_host: str = HOST
    tls: ServerTls | None = None
    memory_prefix: str = field(default_factory=lambda: f"hebbline_{secrets.token_hex(8)}_")

    def __post_init__(self) -> None:
        for path in (self.repository.absolute(), self.backends.absolute()):
            if _READ_BY_SHELL.search(str(path)):
                raise InputError(f"{path}: Triton runs no model below a path with spaces or signs that a shell reads")

    def arguments(self) -> list[str]:
        """The command line. Everything but gRPC listens on the loopback interface alone."""
        repository = self.repository.absolute()
        models = models_at_start(read_wanted(repository) is not None)
        return [
            str(self.wheel.binary),
            *server_flags(
                str(repository),
                self.ports,
                secrets.token_hex(16),
                grpc_address=self.grpc_host,
                models=models,
                tls=self.tls,
            ),
            f"--backend-directory={self.backends.absolute()}",
            f"--backend-config=python,shm-region-prefix-name={self.memory_prefix}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={self.exit_timeout}",
        ]

    def remove_shared_memory(self) -> None:
        """Remove what a killed server leaves in memory: the blocks that it shared with the model's process."""
        for block in SHARED_MEMORY.glob(f"{self.memory_prefix}*"):
            block.unlink(missing_ok=True)

    def spawn(self, log: Path, extra_environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own; it ends when the calling thread does. The log is appended to."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.arguments(),
                env=self.wheel.environment() | extra_environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the launcher, which then drains
                preexec_fn=_end_with_parent(),
            )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a spawned server and all its children, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_model_ready(ports: Ports, model: str = MODEL_NAME) -> bool:
    """Whether the server says that a model can take requests."""
    return _is_fine(ports.http, f"/v2/models/{model}/ready")


def is_server_ready(http_port: int) -> bool:
    """Whether a server has started."""
    return _is_fine(http_port, "/v2/health/ready")


def _is_fine(http_port: int, path: str) -> bool:
    # HTTP, a connection each time: a gRPC channel would wait for a second after a refusal.
    connection = http.client.HTTPConnection(HOST, http_port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def load_failure(log: Path, model: str) -> str | None:
    """Why a further model could not be loaded, by the server's log; None where it says nothing of that."""
    said = cannot("load", model)
    lines = [line for line in log.read_text(errors="replace").splitlines() if said in line]
    return lines[-1][lines[-1].index(said) :] if lines else None


def end_reason(process: subprocess.Popen[bytes], log: Path) -> str:
    """Why a server ended: the signal that killed it, or its log's last error."""
    if process.returncode is not None and process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}"
    return last_error(log)


def last_error(log: Path) -> str:
    """The last line of a server's log that says what went wrong, without Triton's prefix."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    lines = [line for line in lines if line.strip() and not any(word in line for word in HARMLESS_ERRORS)]
    errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
    chosen = errors or lines or ["it logged nothing"]
    return re.sub(r"^E\d{4} \S+ \d+ \S+\] ", "", chosen[-1]).strip().strip('"')


def own_words(log: Path) -> str:
    """The last line of a server's log that is not Triton's, but of a process that it has started; "" where none is."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line and not _TRITONS.match(line)]
    return said[-1] if said else ""


def _end_with_parent() -> Callable[[], None]:
    """What the child does before it becomes the server: ask for SIGTERM when the thread that spawned it ends."""
    libc = ctypes.CDLL(None)  # loaded here: in the child, between fork and exec, only the call itself is safe

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
