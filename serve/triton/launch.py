"""A local Triton server: started, watched, restarted when its model dies, and stopped with nothing left behind."""

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ...artifacts import CheckError
from .lifeline import LIFELINE_VARIABLE, Lifeline
from .process import HOST, Ports, ServerCommand, is_model_ready, kill_group, last_error
from .wheel import find_wheel

POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25
STOP_SECONDS = 5.0
RESTARTS = 3


class TritonServer:
    """`tritonserver` on the loopback interface, with the model of one repository.

    Use it as a context manager: it starts on entry and stops on exit, from the same thread, as the server is told to
    end when the thread that started it does.

    Args:
        repository: a directory that `fill_repository` filled.
        run_directory: an existing directory for the server's log, backends and pipe.
        ports: must be free.
        drain_seconds: what open requests get to finish in `stop`; the model's own setting of that name.
        ready_timeout: seconds that the model may take to load, at the start and after a restart.
    """

    def __init__(
        self,
        repository: Path,
        run_directory: Path,
        ports: Ports,
        *,
        drain_seconds: float = 5.0,
        ready_timeout: float = 300.0,
    ) -> None:
        self.ports = ports
        self.log = run_directory / "server.log"
        self._repository = repository
        self._run_directory = run_directory
        self._drain_seconds = drain_seconds
        self._ready_timeout = ready_timeout
        self._command: ServerCommand | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._watchdog: threading.Thread | None = None

    @property
    def grpc_url(self) -> str:
        """The address for clients, host:port."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def pid(self) -> int | None:
        """The server's process id, None before the start."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; `wait_ready` waits for the model.

        Raises:
            InputError: a port is in use, or the wheel cannot serve here.
        """
        wheel = find_wheel()
        self.ports.check_free()
        backends = self._run_directory / "backends"
        shutil.rmtree(backends, ignore_errors=True)
        wheel.assemble_backends(backends)
        self.log.write_bytes(b"")
        exit_timeout = int(self._drain_seconds + STOP_SECONDS / 2)
        self._command = ServerCommand(wheel, backends, self._repository, self.ports, exit_timeout)
        self._lifeline = Lifeline(self._run_directory / "lifeline")
        self._spawn()

    def wait_ready(self, on_wait: Callable[[float], None] | None = None) -> None:
        """Wait for the model, then begin to watch it. `on_wait` is called now and then with the seconds so far.

        Raises:
            CheckError: the server ended or the time is over; the message has the log's last error.
        """
        self._wait_for_model(on_wait)
        self._watchdog = threading.Thread(target=self._watch, name="hebbline-watchdog", daemon=True)
        self._watchdog.start()

    def wait(self) -> None:
        """Block until the server is given up; raises CheckError then, as only `stop` ends a server well."""
        self._ended.wait()
        raise CheckError(f"the Triton server cannot be kept running: {last_error(self.log)} (log: {self.log})")

    def stop(self) -> None:
        """Drain the model, end the server, and make sure that none of its processes is left."""
        self._stopping.set()
        if self._watchdog is not None:
            self._watchdog.join()
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline.path.unlink(missing_ok=True)
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            # A client that keeps a stream open would keep the server: after the drain nothing is lost by killing it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._drain_seconds + STOP_SECONDS)
            kill_group(self._process)

    def _spawn(self) -> None:
        assert self._command is not None and self._lifeline is not None, "the server has been started"
        self._process = self._command.spawn(self.log, {LIFELINE_VARIABLE: str(self._lifeline.path.absolute())})

    def _wait_for_model(self, on_wait: Callable[[float], None] | None = None) -> None:
        assert self._process is not None and self._lifeline is not None, "the server has been started"
        started = time.monotonic()
        while not is_model_ready(self.ports):
            elapsed = time.monotonic() - started
            if self._process.poll() is not None:
                raise CheckError(f"the Triton server ended while loading: {last_error(self.log)} (log: {self.log})")
            if elapsed > self._ready_timeout:
                raise CheckError(f"not ready after {elapsed:.0f} s: {last_error(self.log)} (log: {self.log})")
            if on_wait is not None:
                on_wait(elapsed)
            if self._stopping.wait(POLL_SECONDS):
                return
        self._lifeline.watch()

    def _watch(self) -> None:
        """Restart the server when the model's process has died.

        Triton goes on to call such a model ready, fails every new request, and never ends the open ones. Loading the
        model anew would serve the new ones only: the clients of the open ones would wait for ever. A server that ends
        resets their connections, and they know at once.
        """
        assert self._lifeline is not None, "the server has been started"
        while not self._stopping.is_set():
            if self._lifeline.wait_for_death(WATCH_SECONDS) and not self._restart():
                self._ended.set()
                return

    def _restart(self) -> bool:
        """Try a few times; False when the model does not come up, or the server is being stopped."""
        for attempt in range(1, RESTARTS + 1):
            assert self._process is not None and self._lifeline is not None, "the server has been started"
            self._note(f"the model's process has died; restarting the server ({attempt} of {RESTARTS})")
            kill_group(self._process)
            self._lifeline.arm()
            self._spawn()
            try:
                self._wait_for_model()
                return True
            except CheckError as error:
                self._note(str(error))
        return False

    def _note(self, message: str) -> None:
        with self.log.open("a") as log:
            log.write(f"hebbline: {message}\n")
