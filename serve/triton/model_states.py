"""What has become of the further models of a server: what its `model-control` keeps, and what it tells clients."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["loading", "loaded", "failed", "unloaded"]


@dataclass(frozen=True)
class ModelState:
    """What a server tells of a further model.

    Attributes:
        version: of the list of models that the server follows; 0: none so far.
        state: what has become of the model by that list.
        reason: why it has failed, in words; else empty.
    """

    version: int
    state: State
    reason: str = ""


class ModelStates:
    """The states of all further models; used by two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._states: dict[str, tuple[State, str]] = {}

    def loaded(self) -> set[str]:
        """The names of the models that are loaded."""
        with self._lock:
            return {name for name, (state, _) in self._states.items() if state == "loaded"}

    def begin(self, version: int, wanted: Iterable[str]) -> None:
        """A list begins to be followed. What failed by the one before is tried again; what is not wanted is forgotten.

        A loaded model that is no longer wanted is called unloaded from here on, as clients are to leave it.
        """
        with self._lock:
            loaded = {name: said for name, said in self._states.items() if said[0] == "loaded"}
            self._version = version
            self._states = {name: loaded.get(name, ("loading", "")) for name in wanted}

    def end(self, name: str, failure: str | None) -> None:
        """A model that was loading is loaded, or could not be, for a reason in words."""
        with self._lock:
            self._states[name] = ("loaded", "") if failure is None else ("failed", failure)

    def of(self, name: str) -> ModelState:
        """What to tell of a model."""
        with self._lock:
            return ModelState(self._version, *self._states.get(name, ("unloaded", "")))
