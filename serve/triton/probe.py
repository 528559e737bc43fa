"""Requests that tell a server that hangs from one that is only busy.

Each goes through Triton's front end, Triton and the model's process, and back: an empty request, which the model
refuses at once. It takes no slot and waits for none, so that the answer is due however many requests are served.
"""

import contextlib
import http.client
import select
import time
from collections.abc import Callable

from .process import HOST, Ports
from .protocol import INVALID_ARGUMENT
from .settings import MODEL_NAME

PAUSE_SECONDS = 1.0
HUNG_SECONDS = 8.0
"""An answer may take this long, and longer where the model's process computes: it may be at a very long prompt."""
BUSY_SECONDS = 300.0
"""An answer may take this long in any case."""
BUSY_SHARE = 0.05
"""Of a processor: a process that uses more is computing."""
LONGEST_STEP = 0.5
"""Seconds that may pass at most between two looks. More have passed where this process, or all of the machine, was
stopped, and then the server had no time to answer either."""


class Probe:
    """One request at a time. `check` never waits for an answer; call it a few times a second.

    Args:
        ports: of the server.
        cpu_seconds: processor time that the model's process has taken so far.
    """

    def __init__(self, ports: Ports, cpu_seconds: Callable[[], float]) -> None:
        self._ports = ports
        self._cpu_seconds = cpu_seconds
        self._connection: http.client.HTTPConnection | None = None
        self._looked = time.monotonic()
        self._pausing = PAUSE_SECONDS
        self._unanswered: float | None = None
        self._cpu_before = 0.0

    def check(self) -> str | None:
        """Ask where it is time to, and look whether the answer is there; what is wrong where it is overdue."""
        now = time.monotonic()
        step, self._looked = min(now - self._looked, LONGEST_STEP), now
        if self._unanswered is None:
            self._pausing -= step
            if self._pausing <= 0:
                self._unanswered, self._cpu_before = 0.0, self._cpu_seconds()
                self._ask()
            return None
        if self._is_answered():
            self._unanswered, self._pausing = None, PAUSE_SECONDS
            return None
        self._unanswered += step
        return self._verdict(self._unanswered)

    def close(self) -> None:
        """Give up the open request, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self) -> None:
        self.close()
        self._connection = http.client.HTTPConnection(HOST, self._ports.http, timeout=1)
        # A failure to connect counts as no answer: the next look asks again, while the time runs on.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._connection.request("POST", f"/v2/models/{MODEL_NAME}/generate", b"{}")

    def _is_answered(self) -> bool:
        """Whether the model has answered; asks again where the connection has ended without it."""
        if self._connection is None or self._connection.sock is None:
            self._ask()
            return False
        if not select.select([self._connection.sock], [], [], 0)[0]:
            return False
        try:
            # The model's own words: where Triton cannot reach its process, it refuses with the same status.
            answered = f"{INVALID_ARGUMENT}:".encode() in self._connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            answered = False
        self.close()
        return answered

    def _verdict(self, seconds: float) -> str | None:
        is_busy = self._cpu_seconds() - self._cpu_before > BUSY_SHARE * seconds
        if seconds < (BUSY_SECONDS if is_busy else HUNG_SECONDS):
            return None
        return f"the model has not answered for {seconds:.1f} s"
