"""Follows the list of further models. Importable in Triton's stub only.

Triton's own way to load and unload models, the control plane of its gRPC and HTTP services, is closed to everyone: who
reaches it can have code run. A model may ask for the same from inside. This one has it done as a file in the repository
says, by processes of their own.
"""

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...artifacts import InputError
from .errand import run_errand
from .lifeline import watch_lifeline
from .model_states import ModelState, ModelStates
from .process import Ports, is_server_ready
from .repository import check_config
from .wanted import WantedModels, cannot, read_list

SECONDS = 0.25


class ModelControl:
    """Follows a repository's list of further models, from a thread of its own, and tells what has become of them.

    Args:
        repository: the directory of all models.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._states = ModelStates()
        self._left: set[str] = set()
        self._followed: WantedModels | None = None
        self._complaint = ""
        self._has_started = False
        self._ports = _ports(os.getppid())
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hebbline-model-control", daemon=True)
        self._thread.start()
        watch_lifeline(on_shutdown=lambda: None, has_failed=lambda: not self._thread.is_alive())

    def answer(self, requests: list[Any]) -> list[Any]:
        """A response to each request, which names a model: what has become of it."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        (name,) = pb_utils.get_input_tensor_by_name(request, "model").as_numpy().reshape(-1)
        tensors = _tensors(self._states.of(name.decode(errors="replace")))
        wanted = set(request.requested_output_names())
        return pb_utils.InferenceResponse([tensor for tensor in tensors if tensor.name() in wanted])

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(SECONDS):
            if self._may_ask():
                self._follow()

    def _may_ask(self) -> bool:
        """Whether the server has started. Until then it would refuse."""
        if not self._has_started:
            self._has_started = is_server_ready(self._ports.http)
        return self._has_started

    def _follow(self) -> None:
        """Where the list has changed, load and unload what differs. What failed is tried again at its next change."""
        listed = self._list()
        if listed is None or listed == self._followed:
            return
        self._followed = listed
        wanted, loaded = set(listed.names), self._states.loaded()
        self._states.begin(listed.version, wanted)
        self._left = {name for name in sorted((loaded | self._left) - wanted) if not self._unload(name)}
        for name in sorted(wanted - loaded):
            self._states.end(name, self._load(name))

    def _list(self) -> WantedModels | None:
        """The list, an empty one where there is none; None where it is malformed, which is said once."""
        try:
            listed = read_list(self._repository) or WantedModels((), 0)
            self._complaint = ""
        except InputError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log(f"nothing is loaded or unloaded: {error}", is_error=True)
            return None
        return listed

    def _load(self, name: str) -> str | None:
        """Why the model cannot be loaded, in words; None where it is."""
        try:
            check_config(self._repository / name)
            failure = run_errand("load", name, self._ports)
        except InputError as error:
            failure = f"{cannot('load', name)}: {error}"
        _log(failure or f"loaded the model '{name}'", is_error=failure is not None)
        return failure

    def _unload(self, name: str) -> bool:
        failure = run_errand("unload", name, self._ports)
        _log(failure or f"unloaded the model '{name}'", is_error=failure is not None)
        return failure is None


def _ports(server: int) -> Ports:
    """Of the server's process, by its command line, which has the flags of `server_flags`."""
    found = dict(re.findall(r"--(grpc|http|metrics)-port=(\d+)", Path(f"/proc/{server}/cmdline").read_text()))
    return Ports(**{name: int(port) for name, port in found.items()})


def _tensors(state: ModelState) -> list[Any]:
    return [
        pb_utils.Tensor("version", np.array([state.version], np.int64)),
        pb_utils.Tensor("state", np.array([state.state.encode()], np.object_)),
        pb_utils.Tensor("reason", np.array([state.reason.encode()], np.object_)),
    ]


def _log(message: str, is_error: bool) -> None:
    log = pb_utils.Logger.log_error if is_error else pb_utils.Logger.log_info
    log(f"hebbline: {message}")
