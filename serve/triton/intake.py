"""Where requests are read, tokenized and handed to the scheduler: threads of their own, and so many at a time.

A long prompt takes its time there, while the thread that receives requests goes on to the next one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..tickets import QueueFullError, UnavailableError

THREADS = 2


class Intake:
    """Runs jobs on a few threads.

    Args:
        most: jobs that may wait or run; one more is refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places = threading.BoundedSemaphore(most)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hebbline-intake")

    def put(self, job: Callable[[], None]) -> None:
        """Run a job, which must not raise, as soon as a thread is free.

        Raises:
            QueueFullError: as many wait or run as may.
            UnavailableError: `close` was called.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFullError(f"{self._most} requests wait to be read already: try again later")
        try:
            self._pool.submit(self._run, job)
        except RuntimeError as error:
            self._places.release()
            raise UnavailableError("the server is shutting down") from error

    def close(self) -> None:
        """Take no more jobs, and wait for those that were taken."""
        self._pool.shutdown()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            self._places.release()
