"""The watch over one run of the server: whether it or its model's process has died, or hangs.

Triton reports neither: it goes on to call a model ready whose process is gone.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .lifeline import Lifeline
from .probe import Probe
from .process import Ports, is_model_ready
from .settings import LOADER_NAME, MODEL_NAME

SERVER_ENDED = "the Triton server has ended"
MODEL_ENDED = "the model's process has died"
_STUB = "triton_python_backend_stub"
_MODEL_FILE = re.compile(r"([^/\0]+)/\d+/model\.py")
_PROCESSES = Path("/proc")
SCAN_SECONDS = 1.0
"""How often it is looked for processes of models that were loaded meanwhile."""
# Of the fields in /proc/PID/stat that follow the process's name.
_STATE, _PARENT, _USER_TICKS, _SYSTEM_TICKS, _STARTED, _EXIT_CODE = 0, 1, 11, 12, 19, 49


class Watch:
    """Begins when the model is ready. A process that is already gone by then is seen as well.

    Args:
        server: the process that was spawned.
        lifeline: the launcher holds its writing end alone.
        ports: of the server, for the probe.
    """

    def __init__(self, server: "subprocess.Popen[bytes]", lifeline: Lifeline, ports: Ports) -> None:
        self._server = server
        self._lifeline = lifeline
        self._ports = ports
        self._models = model_processes(server.pid)
        self._scanned = time.monotonic()
        self._probe = Probe(ports, lambda: sum(model.cpu_seconds() for model in self._models))

    def wait_for_death(self, timeout: float) -> str | None:
        """Wait up to `timeout` seconds, at most as long as nothing happens; what has happened, in words, else None."""
        # The pipe tells at once of a model that dies. It tells nothing while another process holds its far end.
        is_cut = self._lifeline.wait_for_death(timeout)
        if self._server.poll() is not None:
            return SERVER_ENDED
        if is_cut or not self._models:
            return MODEL_ENDED
        lost = self._lost_model()
        if lost is not None:
            return MODEL_ENDED if lost == MODEL_NAME else f"the process of the model '{lost}' has died"
        return self._probe.check()

    def _lost_model(self) -> str | None:
        """The name of a model whose process has died, and that was not unloaded. That of the model-loader may die.

        Triton calls a model that is being unloaded not ready before its process ends, and goes on to call one ready
        whose process has died.
        """
        gone = [model for model in self._models if not model.is_alive()]
        if gone or time.monotonic() - self._scanned > SCAN_SECONDS:
            self._models = model_processes(self._server.pid)
            self._scanned = time.monotonic()
        living = {model.name for model in self._models}
        lost = (model.name for model in gone if model.name not in living | {LOADER_NAME})
        return next((name for name in lost if is_model_ready(self._ports, name)), None)

    def close(self) -> None:
        """Give up the probe's open request."""
        self._probe.close()


@dataclass(frozen=True)
class ModelProcess:
    """A process that runs the model `name`; `started`, in ticks since boot, tells it from a later one of its number."""

    pid: int
    started: str
    name: str = MODEL_NAME

    def is_alive(self) -> bool:
        """Whether it runs, or is stopped: not whether it answers."""
        fields = _stat(self.pid)
        return bool(fields) and fields[_STARTED] == self.started and fields[_STATE] not in "ZX"

    def cpu_seconds(self) -> float:
        """The processor time that it has taken; 0 where it is gone."""
        fields = _stat(self.pid)
        ticks = sum(int(fields[index]) for index in (_USER_TICKS, _SYSTEM_TICKS)) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class DeadProcess:
    """A process of a model that has died, and of which the server has not taken note; its model is not known any more.

    `ending` is how it ended, in words. Triton takes note within a second or so of one in which Python has begun, and
    never of one that died before.
    """

    pid: int
    started: str
    ending: str


def process_ids(server_pid: int) -> set[int]:
    """Of all processes that a server has started and not seen the end of: living, dead, and those that are ending."""
    return {pid for pid, _ in _children(server_pid)}


def model_processes(server_pid: int) -> list[ModelProcess]:
    """The living processes in which a server runs its models."""
    found = []
    for pid, fields in _children(server_pid):
        if _STUB in (command := _read(pid, "cmdline")):
            name = _MODEL_FILE.search(command)
            found.append(ModelProcess(pid, fields[_STARTED], name[1] if name else MODEL_NAME))
    return found


def dead_processes(server_pid: int) -> list[DeadProcess]:
    """The processes of a server's models that have died, and of which it has not taken note; it has no other ones."""
    return [
        DeadProcess(pid, fields[_STARTED], _ending(int(fields[_EXIT_CODE])))
        for pid, fields in _children(server_pid)
        if fields[_STATE] == "Z"
    ]


def _ending(status: int) -> str:
    """How a process ended, by the status that `wait` gives."""
    code, number = status >> 8, status & 0x7F
    return signal.Signals(number).name if number else f"exit code {code}"


def _children(pid: int) -> Iterator[tuple[int, list[str]]]:
    """The processes that a process has started, and what `_stat` says of each."""
    for child in [int(path.name) for path in _PROCESSES.iterdir() if path.name.isdigit()]:
        fields = _stat(child)
        if fields and int(fields[_PARENT]) == pid:
            yield child, fields


def _stat(pid: int) -> list[str]:
    """The fields after the process's name, which stands in parentheses and may hold any character."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    """A file about a process; empty where the process is gone, or another user's."""
    try:
        return (_PROCESSES / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
