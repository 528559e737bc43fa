"""Servers of others under the same load: llama.cpp's and OpenVINO's, where they are installed.

Nothing is installed here, and no model is converted: `--peer-model` is a file that such a server takes.
"""

import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..artifacts import CheckError, InputError
from ..serve.triton.process import HOST, free_ports, kill_group
from ..serve.triton.watch import ModelProcess
from .endings import end_with_parent

START_SECONDS = 300.0
POLL_SECONDS = 0.1
MODEL_NAME = "llm"
INSTALL = "docs/gateway.md says how to install one"
_GGUF = b"GGUF"
_OPENVINO_GRAPH = "graph.pbtxt"
_CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to a multiple of this."""


@dataclass(frozen=True)
class PeerLoad:
    """What a peer must be able to take: the same as our server beside it.

    Attributes:
        threads: that compute; 0: one for each core that this process may use.
        slots: requests at a time.
        tokens: of a prompt and its completion, at most.
    """

    threads: int
    slots: int
    tokens: int

    @property
    def cores(self) -> list[int]:
        """So many cores as there are threads, by number, of those that this process may use."""
        usable = sorted(os.sched_getaffinity(0))
        return usable[: self.threads or len(usable)]


@dataclass(frozen=True)
class Peer:
    """A server of others, and how it is started and asked.

    Attributes:
        name: of its rows.
        command: what starts it, but for the port.
        completions: the path of OpenAI's completions.
        ready: a path that is answered with 200 as soon as the model is loaded.
        port: the option that says at which port.
        takes_tokens: whether a prompt may be tokens; else it is their text.
        cores: what it may run on, where its threads cannot be set otherwise; None: anywhere.
    """

    name: str
    command: tuple[str, ...]
    completions: str
    ready: str
    port: str = "--port"
    takes_tokens: bool = True
    cores: tuple[int, ...] | None = None


def find_peer(model: Path, load: PeerLoad) -> Peer:
    """The installed server that takes a model.

    Raises:
        InputError: there is no such file, it is for none of the servers that are known here, or the one that it is for
            is not installed.
    """
    if model.is_file():
        return _llama_cpp(model, load)
    if not model.is_dir():
        raise InputError(f"--peer-model {model}: there is no such file or directory")
    if not (model / _OPENVINO_GRAPH).is_file():
        raise InputError(f"--peer-model {model}: a directory is for OpenVINO's server, and has {_OPENVINO_GRAPH}")
    return _openvino(model, load)


def _llama_cpp(model: Path, load: PeerLoad) -> Peer:
    with model.open("rb") as file:
        if file.read(len(_GGUF)) != _GGUF:
            raise InputError(f"--peer-model {model}: a file is for llama.cpp's server, and in the format GGUF")
    program, threads = shutil.which("llama-server"), str(len(load.cores))
    common = ("--model", str(model), "--host", HOST)
    if program is not None:
        context = load.slots * -(-load.tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        own = ("--threads", threads, "--threads-batch", threads, "--parallel", str(load.slots))
        command = (program, *common, *own, "--ctx-size", str(context), "--alias", MODEL_NAME)
        return Peer("llama.cpp", command, "/v1/completions", "/health")
    if importlib.util.find_spec("llama_cpp") is not None:
        own = ("--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", str(load.tokens))
        command = (sys.executable, "-m", "llama_cpp.server", *common, *own, "--model_alias", MODEL_NAME)
        return Peer("llama-cpp-python", command, "/v1/completions", "/v1/models")
    raise InputError(
        f"--peer-model {model}: llama.cpp's server is not installed: there is neither llama-server on PATH nor the "
        f"package llama-cpp-python; {INSTALL}"
    )


def _openvino(model: Path, load: PeerLoad) -> Peer:
    program = shutil.which("ovms")
    if program is None:
        raise InputError(
            f"--peer-model {model}: OpenVINO's server is not installed: there is no ovms on PATH; {INSTALL}"
        )
    command = (program, "--model_name", MODEL_NAME, "--model_path", str(model.absolute()), "--rest_bind_address", HOST)
    # Its threads are set in graph.pbtxt, which is not ours to change; it starts no more than it has cores.
    cores = tuple(load.cores)
    return Peer("openvino", command, "/v3/completions", "/v2/health/ready", "--rest_port", False, cores)


class PeerProcess:
    """A peer from the beginning of a `with` block to its end, which no process of it outlives.

    Args:
        peer: as `find_peer` found it.
        log: what it says is written here.
    """

    def __init__(self, peer: Peer, log: Path) -> None:
        self._peer, self._log = peer, log
        self.name = f"{peer.name}'s server"
        self._port = free_ports().grpc
        self.completions_url = f"http://{HOST}:{self._port}{peer.completions}"

    def __enter__(self) -> "PeerProcess":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._peer.command, self._peer.port, str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, which is ended as a whole
                preexec_fn=_prepare(self._peer.cores),
            )
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        kill_group(self._process)

    def processes(self) -> list[ModelProcess]:
        """Its processes: the one that was started, and those that it has started."""
        found = []
        for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]:
            try:
                if os.getpgid(pid) == self._process.pid:
                    found.append(ModelProcess(pid, ""))
            except ProcessLookupError:
                continue
        return found

    def check_running(self) -> None:
        """Raise CheckError where it has ended."""
        if (code := self._process.poll()) is not None:
            raise CheckError(f"{self.name} has ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, in one line."""
        return " ".join(self._log.read_text(errors="replace")[-500:].split()) or "it said nothing"

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            self.check_running()
            if time.monotonic() > deadline:
                raise CheckError(f"{self.name} was not ready after {START_SECONDS:.0f} s: {self.last_words()}")
            time.sleep(POLL_SECONDS)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=1)
        try:
            connection.request("GET", self._peer.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _prepare(cores: tuple[int, ...] | None) -> Callable[[], None]:
    """What the process does before it becomes the peer: end with this one, and keep to its cores."""
    end = partial(end_with_parent, os.getpid())

    def prepare() -> None:
        end()
        if cores is not None:
            os.sched_setaffinity(0, cores)

    return prepare
