"""A model's process that dies at the start, before Python has begun in it: Triton 2.51 waits for it for ever.

So does one that cannot be run at all, as where a library is missing or the memory is too small.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from .process import own_words
from .watch import DeadProcess, dead_processes, model_processes

LOOK_SECONDS = 0.5
UNNOTICED_SECONDS = 5.0
"""A server that takes note of a death at all has done so after this time, however busy the machine is."""


class EarlyDeath:
    """Asked as often as one likes while a server loads its first models, it looks twice a second.

    Args:
        server_pid: of the server.
        models: the names of the models whose processes it starts.
        log: of the server.
    """

    def __init__(self, server_pid: int, models: Sequence[str], log: Path) -> None:
        self._server_pid, self._models, self._log = server_pid, models, log
        self._since: dict[DeadProcess, float] = {}
        self._looked = 0.0

    def check(self) -> str | None:
        """What has happened, in words, where a process has been dead for so long that the server will not notice."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        self._since = {process: self._since.get(process, now) for process in dead_processes(self._server_pid)}
        lost = [process for process, since in self._since.items() if now - since >= UNNOTICED_SECONDS]
        return self._words(lost) if lost else None

    def _words(self, lost: Sequence[DeadProcess]) -> str:
        living = {process.name for process in model_processes(self._server_pid)}
        names = " or ".join(f"'{name}'" for name in self._models if name not in living)
        said = own_words(self._log)
        return (
            f"the process of the model {names} died ({lost[0].ending}) before Python had begun in it"
            f"{f': {said}' if said else ''}; Triton would wait for it for ever"
        )
