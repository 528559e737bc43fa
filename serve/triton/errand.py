"""One load or unload of a model, done by a process of its own. Importable in Triton's stub only.

Where a model cannot be loaded, Triton 2.51 must not get to say so: it gives the memory of that answer back while the
process that has asked reads it, which breaks the memory that both share, and then the one dies or the other. So the
model-control does not ask itself. It has the model `model-loader` loaded with an errand in its configuration: a process
that asks, and then exits. Where the process of the model that it loads dies, it is killed before Triton has noticed,
which takes most of a second. A thread of Triton's then waits for it for ever; that is all that is lost.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import triton_python_backend_utils as pb_utils

from .process import Ports, is_model_ready
from .settings import LOADER_NAME
from .wanted import cannot
from .watch import ModelProcess, dead_processes, model_processes, process_ids

Action = Literal["load", "unload"]
POLL_SECONDS = 0.05
STUCK_SECONDS = 10.0
"""The loader may wait for so long until the model has a process, which Triton starts within milliseconds."""
REFUSAL = "this model takes no requests: it loads and unloads others"
_PARAMETERS = ("action", "model", "go")


@dataclass(frozen=True)
class Errand:
    """What the loader is to do.

    Attributes:
        action: "load" or "unload".
        model: the name of the model.
        go: a file that appears when the loader may begin. Triton must have finished to load the loader itself by then,
            as a process that asks Triton for something does nothing else until it is answered.
    """

    action: Action
    model: str
    go: Path

    def as_config(self) -> str:
        """The configuration of the loader, with the errand as its parameters."""
        tensors = {"data_type": "TYPE_INT32", "dims": [1]}
        values = {"action": self.action, "model": self.model, "go": str(self.go)}
        config = {
            "name": LOADER_NAME,
            "backend": "python",
            "input": [{"name": "nothing", **tensors}],
            "output": [{"name": "nothing_either", **tensors}],
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            "parameters": {name: {"string_value": values[name]} for name in _PARAMETERS},
        }
        return json.dumps(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Errand":
        """The errand in a configuration as Triton passes it on."""
        action, model, go = (config["parameters"][name]["string_value"] for name in _PARAMETERS)
        return cls(action, model, Path(go))

    def do(self) -> None:
        """In the loader's process: do it as soon as that is due, and end the process, from a thread of its own."""
        threading.Thread(target=self._do, args=(os.getppid(),), name="hebbline-errand", daemon=True).start()

    def _do(self, server: int) -> None:
        while not self.go.exists():
            if os.getppid() != server:
                os._exit(1)
            time.sleep(POLL_SECONDS)
        act = pb_utils.load_model if self.action == "load" else pb_utils.unload_model
        with suppress(Exception):  # Triton's log has it, and the model-control looks at what has come of it
            act(model_name=self.model)
        os._exit(0)


def refuse(requests: list[Any]) -> list[Any]:
    """A response to each request, which says that there is nothing to ask here."""
    error = pb_utils.TritonError(REFUSAL, pb_utils.TritonError.INVALID_ARG)
    return [pb_utils.InferenceResponse(error=error) for _ in requests]


def run_errand(action: Action, model: str, ports: Ports) -> str | None:
    """In the model-control's process: have a model loaded or unloaded; what is wrong where that failed, in words."""
    server = os.getppid()
    with tempfile.TemporaryDirectory(prefix="hebbline-errand-") as directory:
        errand = Errand(action, model, Path(directory) / "go")
        try:
            pb_utils.load_model(model_name=LOADER_NAME, config=errand.as_config())
        except Exception as error:
            return f"{cannot(action, model)}: {' '.join(str(error).split())}"
        known = process_ids(server)
        errand.go.touch()
        failure = _wait_for_end(server, model, known, is_loaded=action == "load")
    if is_model_ready(ports, model) == (action == "load"):
        return None
    return f"{cannot(action, model)}: {failure or 'Triton refused it'}; see the server's log"


def _wait_for_end(server: int, model: str, known: Collection[int], is_loaded: bool) -> str | None:
    """Wait until the loader's process has ended. One that waits in vain is ended here: why it does, in words.

    `known` are the processes that there were before, by their numbers: another one that dies is the model's, also where
    it has died too soon to be seen alive.
    """
    began, had_process = time.monotonic(), False
    while True:
        # Who has died is asked first: the loader, which lives after that, is not among them.
        dead = [process for process in dead_processes(server) if process.pid not in known]
        processes = {process.name: process for process in model_processes(server)}
        has_process = model in processes
        if LOADER_NAME not in processes:
            return None
        if is_loaded and (dead or (had_process and not has_process)):
            _kill(processes[LOADER_NAME])
            return f"its process died while it was loaded{f' ({dead[0].ending})' if dead else ''}"
        if not had_process and not has_process and time.monotonic() - began > STUCK_SECONDS:
            _kill(processes[LOADER_NAME])
            return (
                "Triton starts no process for it, as it waits for ever for one that died before it had begun: "
                "load it by another name, or restart the server"
            )
        had_process = had_process or has_process
        time.sleep(POLL_SECONDS)


def _kill(process: ModelProcess) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
