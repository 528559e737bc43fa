"""The watch over one run of the server: whether it or its model's process has died, or hangs.

Triton reports neither: it goes on to call a model ready whose process is gone.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .lifeline import Lifeline
from .probe import Probe
from .process import Ports

SERVER_ENDED = "the Triton server has ended"
MODEL_ENDED = "the model's process has died"
_STUB = "triton_python_backend_stub"
_PROCESSES = Path("/proc")
# Of the fields in /proc/PID/stat that follow the process's name.
_STATE, _PARENT, _USER_TICKS, _SYSTEM_TICKS, _STARTED = 0, 1, 11, 12, 19


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
        self._models = model_processes(server.pid)
        self._probe = Probe(ports, lambda: sum(model.cpu_seconds() for model in self._models))

    def wait_for_death(self, timeout: float) -> str | None:
        """Wait up to `timeout` seconds, at most as long as nothing happens; what has happened, in words, else None."""
        # The pipe tells at once of a model that dies. It tells nothing while another process holds its far end.
        is_cut = self._lifeline.wait_for_death(timeout)
        if self._server.poll() is not None:
            return SERVER_ENDED
        if is_cut or not self._models or not all(model.is_alive() for model in self._models):
            return MODEL_ENDED
        return self._probe.check()

    def close(self) -> None:
        """Give up the probe's open request."""
        self._probe.close()


@dataclass(frozen=True)
class ModelProcess:
    """A process that runs a model; `started`, in ticks since boot, tells it from a later one of the same number."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether it runs, or is stopped: not whether it answers."""
        fields = _stat(self.pid)
        return bool(fields) and fields[_STARTED] == self.started and fields[_STATE] not in "ZX"

    def cpu_seconds(self) -> float:
        """The processor time that it has taken; 0 where it is gone."""
        fields = _stat(self.pid)
        ticks = sum(int(fields[index]) for index in (_USER_TICKS, _SYSTEM_TICKS)) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")


def model_processes(server_pid: int) -> list[ModelProcess]:
    """The living processes in which a server runs its models."""
    found = []
    for pid in [int(path.name) for path in _PROCESSES.iterdir() if path.name.isdigit()]:
        fields = _stat(pid)
        if fields and int(fields[_PARENT]) == server_pid and _STUB in _read(pid, "cmdline"):
            found.append(ModelProcess(pid, fields[_STARTED]))
    return found


def _stat(pid: int) -> list[str]:
    """The fields after the process's name, which stands in parentheses and may hold any character."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    """A file about a process; empty where the process is gone, or another user's."""
    try:
        return (_PROCESSES / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
