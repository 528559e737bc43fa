"""A named pipe between `hebbline serve` and the model's process, for what Triton does not tell either of them.

The launcher holds the writing end, each model process the reading end, and no byte ever passes:

* the model reads end-of-file when the launcher shuts down or dies: it finishes its open requests, without which the
  server would wait for their clients for ever;
* the launcher's end turns to error when the model's process dies, which Triton neither reports nor repairs.

In a Triton that `hebbline serve` did not start there is no pipe, and only the check of the parent remains.
"""

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

LIFELINE_VARIABLE = "HEBBLINE_LIFELINE"
CHECK_SECONDS = 0.5


def watch_lifeline(on_shutdown: Callable[[], None], has_failed: Callable[[], bool]) -> None:
    """In the model's process: watch the pipe and the parent from a thread of its own.

    The process exits where the server that started it is gone, or where `has_failed` says that it cannot serve: the
    launcher then loads the model again.
    """
    path = os.environ.get(LIFELINE_VARIABLE)
    pipe = os.open(path, os.O_RDONLY) if path else None
    arguments = (pipe, os.getppid(), on_shutdown, has_failed)
    threading.Thread(target=_watch, args=arguments, name="hebbline-lifeline", daemon=True).start()


def _watch(pipe: int | None, parent: int, on_shutdown: Callable[[], None], has_failed: Callable[[], bool]) -> None:
    while True:
        pipes = [] if pipe is None else [pipe]
        readable, _, _ = select.select(pipes, [], [], CHECK_SECONDS)
        if os.getppid() != parent or has_failed():
            os._exit(1)
        if readable and pipe is not None:
            os.close(pipe)
            pipe = None
            threading.Thread(target=on_shutdown, name="hebbline-shutdown", daemon=True).start()


class Lifeline:
    """The launcher's end of the pipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._writer: int | None = None
        self.arm()

    def arm(self) -> None:
        """Hold the pipe for reading and writing, so that a model's process that is about to start can open it."""
        self.close()
        self._writer = os.open(self.path, os.O_RDWR)

    def watch(self) -> None:
        """Keep only the writing end, from when the model is ready: `wait_for_death` can then see it go."""
        previous, self._writer = self._writer, os.open(self.path, os.O_WRONLY)
        if previous is not None:
            os.close(previous)

    def wait_for_death(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; True as soon as no model's process holds the pipe."""
        if self._writer is None:
            return False
        poll = select.poll()
        poll.register(self._writer, 0)  # errors are always reported
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(timeout * 1000))

    def close(self) -> None:
        """Let go of the pipe: the model's process shuts down."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
