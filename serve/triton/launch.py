"""A local Triton server: started, watched, restarted when it dies or hangs, and stopped with nothing left behind."""

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
from ...runtime.fastest import GraphChoice
from ..addresses import client_host
from ..tls import ServerTls
from .early_death import EarlyDeath
from .graph_choice import CHOICE_VARIABLE, choice_file, read_choice
from .lifeline import LIFELINE_VARIABLE, Lifeline
from .process import (
    HOST,
    Ports,
    ServerCommand,
    end_reason,
    is_model_ready,
    kill_group,
    last_error,
    load_failure,
    processes_at_start,
)
from .restarts import Restarts
from .wanted import read_wanted
from .watch import SERVER_ENDED, Watch
from .wheel import find_wheel

POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25
STOP_SECONDS = 5.0


class TritonServer:
    """`tritonserver` on the loopback interface, unless told otherwise, with the models of one repository.

    Use it as a context manager: it starts on entry and stops on exit, from the same thread, as the server is told to
    end when the thread that started it does.

    Args:
        repository: a directory that `fill_repository` filled.
        run_directory: an existing directory for the server's log, backends and pipe.
        ports: must be free.
        drain_seconds: what open requests get to finish in `stop`; the model's own setting of that name.
        ready_timeout: seconds that the model may take to load, at the start and after a restart.
        on_event: told in words of each death and each restart, from a thread of its own. They are in the log as well.
        grpc_host: the address at which the gRPC service listens.
        tls: certificates of the gRPC service; None: it has no TLS.
    """

    def __init__(
        self,
        repository: Path,
        run_directory: Path,
        ports: Ports,
        *,
        drain_seconds: float = 5.0,
        ready_timeout: float = 300.0,
        on_event: Callable[[str], None] | None = None,
        grpc_host: str = HOST,
        tls: ServerTls | None = None,
    ) -> None:
        self.ports = ports
        self.log = run_directory / "server.log"
        self._choices = run_directory / "graphs"
        self._repository = repository
        self._run_directory = run_directory
        self._drain_seconds = drain_seconds
        self._ready_timeout = ready_timeout
        self.on_restart: Callable[[], object] | None = None
        """Called at each restart, from a thread of its own."""
        self._on_event = on_event
        self._grpc_host, self._tls = grpc_host, tls
        self._restarts = Restarts()
        self._command: ServerCommand | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._watch: Watch | None = None
        self._failure = SERVER_ENDED
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._watchdog: threading.Thread | None = None

    @property
    def grpc_url(self) -> str:
        """The address for clients on this machine, host:port."""
        return f"{client_host(self._grpc_host)}:{self.ports.grpc}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while there is none."""
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
        shutil.rmtree(self._choices, ignore_errors=True)
        self._choices.mkdir()
        exit_timeout = int(self._drain_seconds + STOP_SECONDS / 2)
        self._command = ServerCommand(
            wheel, backends, self._repository, self.ports, exit_timeout, self._grpc_host, self._tls
        )
        self._lifeline = Lifeline(self._run_directory / "lifeline")
        self._spawn()

    @property
    def graph_choice(self) -> GraphChoice | None:
        """Which graph of the model `llm` runs on the CPU, once it is ready; None where an engine does."""
        return read_choice(choice_file(self._choices))

    def wait_ready(self, on_wait: Callable[[float], None] | None = None) -> None:
        """Wait for the model, then begin to watch it. `on_wait` is called now and then with the seconds so far.

        Raises:
            CheckError: the server ended or the time is over; the message has the log's last error.
        """
        try:
            self._wait_for_model(on_wait)
            for name in read_wanted(self._repository) or ():
                self._wait_for_further(name, on_wait)
        except CheckError as error:
            raise CheckError(f"{error} (log: {self.log})") from error
        self._watchdog = threading.Thread(target=self._keep_running, name="hebbline-watchdog", daemon=True)
        self._watchdog.start()

    def wait(self) -> None:
        """Block until the server is given up; raises CheckError then, as only `stop` ends a server well."""
        self._ended.wait()
        raise CheckError(f"the Triton server cannot be kept running: {self._failure} (log: {self.log})")

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
            self._kill()

    def _spawn(self) -> None:
        assert self._command is not None and self._lifeline is not None, "the server has been started"
        told = {LIFELINE_VARIABLE: self._lifeline.path, CHOICE_VARIABLE: self._choices}
        self._process = self._command.spawn(self.log, {name: str(path.absolute()) for name, path in told.items()})

    def _wait_for_model(self, on_wait: Callable[[float], None] | None = None) -> None:
        assert self._process is not None and self._lifeline is not None, "the server has been started"
        started = time.monotonic()
        names = processes_at_start(read_wanted(self._repository) is not None)
        early_death = EarlyDeath(self._process.pid, names, self.log)
        while not all(is_model_ready(self.ports, name) for name in names):
            elapsed = time.monotonic() - started
            if self._process.poll() is not None:
                raise CheckError(f"the Triton server ended while loading: {end_reason(self._process, self.log)}")
            if (death := early_death.check()) is not None:
                raise CheckError(death)
            if elapsed > self._ready_timeout:
                raise CheckError(f"not ready after {elapsed:.0f} s: {last_error(self.log)}")
            if on_wait is not None:
                on_wait(elapsed)
            if self._stopping.wait(POLL_SECONDS):
                return
        self._lifeline.watch()
        self._watch = Watch(self._process, self._lifeline, self.ports)

    def _wait_for_further(self, name: str, on_wait: Callable[[float], None] | None) -> None:
        """Wait for a further model at the start. After a restart the others are not kept waiting for it."""
        started = time.monotonic()
        while not is_model_ready(self.ports, name):
            elapsed = time.monotonic() - started
            if (failure := load_failure(self.log, name)) is not None:
                raise CheckError(failure)
            if elapsed > self._ready_timeout:
                raise CheckError(f"the model '{name}' is not ready after {elapsed:.0f} s: {last_error(self.log)}")
            if on_wait is not None:
                on_wait(elapsed)
            if self._stopping.wait(POLL_SECONDS):
                return
        if (failure := load_failure(self.log, name)) is not None:
            raise CheckError(failure)

    def _keep_running(self) -> None:
        """Restart the server whenever it or its model dies or hangs, until `stop`, or until it is given up.

        Triton goes on to call a model ready whose process has died, fails every new request, and never ends the open
        ones. Loading the model anew would serve the new ones only: the clients of the open ones would wait for ever. A
        server that ends resets their connections, and they know at once.
        """
        try:
            while not self._stopping.is_set():
                assert self._watch is not None, "the model was ready"
                death = self._watch.wait_for_death(WATCH_SECONDS)
                if death is not None and not self._restart(death):
                    return
        except Exception as error:
            # A server that is not watched is not left running.
            self._failure = f"its watch has failed: {type(error).__name__}: {error}"
            self._kill()
        finally:
            self._ended.set()

    def _restart(self, death: str) -> bool:
        """Replace the server, again where that one dies as well; False when it is given up or is to stop."""
        while True:
            self._kill()
            delay = self._restarts.next_delay(time.monotonic())
            if delay is None:
                self._failure = f"{death}, after {self._restarts}"
                return False
            self._note(f"{death}; restarting the server" + (f" in {delay:g} s" if delay else ""))
            if self._stopping.wait(delay):
                return False
            try:
                self._respawn()
                return True
            except CheckError as error:
                death = str(error)

    def _respawn(self) -> None:
        """Start the server again; raises CheckError where the model does not come up."""
        assert self._lifeline is not None, "the server has been started"
        started = time.monotonic()
        if self.on_restart is not None:
            self.on_restart()
        self._lifeline.arm()
        self._spawn()
        self._wait_for_model()
        if not self._stopping.is_set():
            self._note(f"the server is ready again after {time.monotonic() - started:.1f} s")

    def _kill(self) -> None:
        """Kill what is left of the server's processes."""
        if self._watch is not None:
            self._watch.close()
        if self._process is not None and self._command is not None:
            kill_group(self._process)
            self._process = None
            self._command.remove_shared_memory()

    def _note(self, message: str) -> None:
        with self.log.open("a") as log:
            log.write(f"hebbline: {message}\n")
        if self._on_event is not None:
            self._on_event(message)
