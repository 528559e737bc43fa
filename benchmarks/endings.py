"""Whatever ends a benchmark: its temporary files go, and so do the processes it has started.

Ctrl-C, SIGTERM and SIGHUP become exceptions, so that every `with` and `finally` is run. SIGKILL leaves no time for
that: a folder is then removed when the next benchmark begins, and processes end by `end_with_parent`.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PREFIX = "hebbline-bench-"
_LOCK = ".lock"
_PR_SET_PDEATHSIG = 1

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def signals_raise() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block; SIGTERM and SIGHUP raise SystemExit with 128 and their number."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    with _handled_by(end):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """A signal that comes in the block has its effect after it: for what must not be cut short."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new temporary folder, which goes when the block ends; those of benchmarks that were killed go first."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    made: tuple[Path, int] | None = None
    try:
        with signals_wait():
            made = _locked_directory()
        yield made[0]
    finally:
        if made is not None:
            with signals_wait():
                shutil.rmtree(made[0], ignore_errors=True)
                os.close(made[1])


def end_with_parent(parent: int) -> None:
    """For a child: be killed when the thread that started it ends, and end now if process `parent` already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Signals that are ignored stay so, as SIGHUP is below nohup. Python handles signals in its main thread only."""
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ENDING if ours}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _locked_directory() -> tuple[Path, int]:
    """A folder and the descriptor that holds its lock, which the system lets go of however the process ends."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink > 0:
            return directory, lock
        os.close(lock)  # another benchmark found the folder before it was locked, and removed it


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders whose locks nobody holds."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it went meanwhile, is still being made, or is held
            facts = directory.lstat()
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
                _remove_if_abandoned(directory)


def _remove_if_abandoned(directory: Path) -> None:
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(lock)
