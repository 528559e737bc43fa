"""Processes that a benchmark asks for what it must not do itself, and that do not outlive it."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from ..artifacts import CheckError, HebblineError
from .endings import end_with_parent, signals_wait

Answer = Callable[[Any], Any]
"""What a helper does with a question; both travel between processes."""
_REAPED_SECONDS = 5


class Helper:
    """A process that answers questions one after another, from the beginning of a `with` block to its end.

    Args:
        name: for messages, as in "the process of NAME ended".
        prepare: runs in the process first, with `arguments`, and returns what answers.
        arguments: of `prepare`.
    """

    def __init__(self, name: str, prepare: Callable[..., Answer], *arguments: Any) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        everything = (os.getpid(), prepare, arguments, self._theirs)
        self._process = context.Process(target=_serve, args=everything, daemon=True)

    def __enter__(self) -> "Helper":
        try:
            with signals_wait():
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with signals_wait():
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()
            self._connection.close()
            self._theirs.close()

    def _start(self) -> None:
        # Ctrl-C in a terminal reaches every process of the command. The mask, which the process inherits, keeps it
        # quiet until it is killed by this one. Starting multiprocessing's own process would undo the mask.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._theirs.close()  # so that the end of the process is seen as the end of the pipe

    def ask(self, question: Any, seconds: float | None = None) -> Any:
        """The answer to a question.

        Args:
            question: for what `prepare` returned.
            seconds: to wait at most; None: as long as the process lives.

        Raises:
            CheckError: the process ended, or did not answer in time.
            HebblineError: whatever the process raised of this kind.
        """
        try:
            self._connection.send(question)
            if not self._connection.poll(seconds):
                raise CheckError(f"the process of {self._name} did not answer in {seconds:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise CheckError(f"the process of {self._name} {self._how_it_ended()}") from error
        if isinstance(answer, HebblineError):
            raise answer
        return answer

    def _how_it_ended(self) -> str:
        self._process.join(_REAPED_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0 and code != -signal.SIGKILL:
            return f"was ended by {signal.Signals(-code).name}"
        return "ended: is there enough memory?"


def _serve(parent: int, prepare: Callable[..., Answer], arguments: tuple, pipe: Connection) -> None:
    end_with_parent(parent)
    try:
        answer = prepare(*arguments)
        while True:
            pipe.send(answer(pipe.recv()))
    except HebblineError as error:
        pipe.send(error)
    except EOFError:
        return  # nobody asks any more
