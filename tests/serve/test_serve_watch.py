"""A server that dies or hangs, alone or with its model, at any moment: it is replaced, or given up aloud."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hebbline.artifacts import CheckError
from hebbline.cli import main
from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton import launch, probe
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import Ports, free_ports, is_model_ready
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.restarts import Restarts
from hebbline.serve.triton.settings import Settings
from hebbline.serve.triton.watch import ModelProcess, model_processes

TWO_TOKENS = SamplingParameters(max_tokens=2)


@pytest.fixture
def events():
    return []


@pytest.fixture
def server(tiny_artifact, tmp_path, events):
    """A server of this test alone, as the tests here are hard on it."""
    fill_repository(tiny_artifact, tmp_path / "repository", Settings(slots=2, threads=1))
    with TritonServer(
        tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1, on_event=events.append
    ) as running:
        yield running


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to it"
        time.sleep(0.002)


def only_model(server_pid):
    (model,) = model_processes(server_pid)
    return model


def shared_memory_of(server_pid):
    """What the server and its model's process share; its name is the second argument of the latter."""
    return Path("/dev/shm") / Path(f"/proc/{only_model(server_pid).pid}/cmdline").read_text().split("\0")[2]


def assert_replaced(server, events, death):
    wait_until(lambda: any("ready again" in event for event in events))
    assert re.fullmatch(f"{death}; restarting the server", events[0])
    with Client(server.grpc_url, timeout=60) as client:
        client.wait_ready(30)
        assert client.complete("the quick", TWO_TOKENS).num_output_tokens == 2


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(launch, "Restarts", lambda: Restarts(first_delay=0.01, longest_delay=0.01))


def test_a_server_killed_the_moment_it_answers_comes_back_each_time(hasty, server, events):
    server.wait_ready()
    for _ in range(6):
        wait_until(lambda: is_model_ready(server.ports))
        os.kill(server_on(server.ports), signal.SIGKILL)
        wait_until(lambda: not is_model_ready(server.ports))
    assert_replaced(server, events, "the Triton server has ended")
    assert sum("restarting the server" in event for event in events) == 6


def server_on(ports):
    """The process id of the server on these ports, the model's process left out."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"--grpc-port={ports.grpc}\0" in (path / "cmdline").read_text():
                return int(path.name)
    raise AssertionError(f"no server has the gRPC port {ports.grpc}")


def test_a_dead_server_is_seen_though_its_models_process_lives_and_holds_the_pipe(server, events):
    server.wait_ready()
    memory = shared_memory_of(server.pid)
    os.kill(only_model(server.pid).pid, signal.SIGSTOP)
    os.kill(server.pid, signal.SIGKILL)
    assert_replaced(server, events, "the Triton server has ended")
    assert not memory.exists(), "a killed server's memory is given back"


def test_a_model_that_dies_before_the_watch_begins_is_seen(server, events):
    wait_until(lambda: is_model_ready(server.ports))
    os.kill(only_model(server.pid).pid, signal.SIGKILL)
    wait_until(lambda: not model_processes(server.pid))
    server.wait_ready()
    assert_replaced(server, events, "the model's process has died")


@pytest.mark.parametrize("victim", ["model", "server"])
def test_a_hang_is_seen(server, events, victim, monkeypatch):
    monkeypatch.setattr(probe, "HUNG_SECONDS", 2.0)
    server.wait_ready()
    os.kill(server.pid if victim == "server" else only_model(server.pid).pid, signal.SIGSTOP)
    assert_replaced(server, events, r"the model has not answered for 2\.\d s")


def test_a_server_with_all_it_can_do_is_not_taken_for_one_that_hangs(server, events, monkeypatch):
    monkeypatch.setattr(probe, "HUNG_SECONDS", 1.0)
    server.wait_ready()
    ends = time.monotonic() + 4
    with Client(server.grpc_url, timeout=60) as client, ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: complete_until(client, ends), range(12)))
    assert events == []


def complete_until(client, ends):
    while time.monotonic() < ends:
        client.complete("the quick", SamplingParameters(max_tokens=100))


@pytest.mark.parametrize(("code", "limit"), [("while True: pass", 2.0), ("import time; time.sleep(60)", 0.5)])
def test_a_model_that_computes_gets_more_time_to_answer(monkeypatch, code, limit):
    """Here nothing ever answers: one process computes, the other does not."""
    monkeypatch.setattr(probe, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(probe, "BUSY_SECONDS", 2.0)
    silent = socket.create_server(("127.0.0.1", 0))
    model = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE)
    with silent, model:
        assert model.stdout.readline() == b"\n", "it has started"
        asking = probe.Probe(Ports(1, silent.getsockname()[1], 2), ModelProcess(model.pid, "").cpu_seconds)
        verdict = first(iter(lambda: time.sleep(0.05) or asking.check(), ""))
        asking.close()
        model.kill()
    assert float(re.fullmatch(r"the model has not answered for (\d\.\d) s", verdict)[1]) == pytest.approx(
        limit, abs=0.4
    )


def first(verdicts):
    return next(verdict for verdict in verdicts if verdict is not None)


def test_time_in_which_the_launcher_itself_was_stopped_is_not_held_against_the_server(monkeypatch):
    monkeypatch.setattr(probe, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "HUNG_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asking = probe.Probe(Ports(1, silent.getsockname()[1], 2), lambda: 0.0)
        assert asking.check() is None
        time.sleep(1.5)
        assert asking.check() is None
        time.sleep(0.6)
        assert asking.check() == "the model has not answered for 1.0 s"
        asking.close()


def test_a_server_that_dies_too_often_is_given_up_with_one_line_and_exit_code_1(
    tiny_artifact, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(launch, "Restarts", lambda: Restarts(limit=1))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ports = free_ports()
    numbers = ["--grpc-port", str(ports.grpc), "--http-port", str(ports.http), "--metrics-port", str(ports.metrics)]
    done = threading.Event()
    killer = threading.Thread(target=kill_whatever_answers, args=(ports, done))
    killer.start()
    try:
        code = main(["serve", str(tiny_artifact), "--slots", "2", "--threads", "1", "--drain-seconds", "0", *numbers])
    finally:
        done.set()
        killer.join()
    lines = capfd.readouterr().err.splitlines()
    assert code == 1
    assert sum("; restarting the server" in line for line in lines) == 1
    errors = [line for line in lines if line.startswith("hebbline: error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0]
    assert "cannot be kept running" in errors[0] and "after 1 restart within 600 s" in errors[0]


def kill_whatever_answers(ports: Ports, done: threading.Event) -> None:
    while not done.wait(0.1):
        # Its launcher must have seen it ready as well: until then a death is a start that has failed.
        if is_model_ready(ports) and not done.wait(1):
            os.kill(server_on(ports), signal.SIGKILL)


def test_a_server_that_can_no_longer_be_watched_is_not_left_running(server):
    server.wait_ready()
    pid = server.pid
    (server.log.parent / "lifeline").unlink()
    os.kill(only_model(pid).pid, signal.SIGKILL)
    failures = []
    waiting = threading.Thread(target=lambda: failures.append(failure_of(server)), daemon=True)
    waiting.start()
    waiting.join(60)
    assert failures and "its watch has failed: FileNotFoundError" in failures[0]
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def failure_of(server):
    with pytest.raises(CheckError) as caught:
        server.wait()
    return str(caught.value)


def test_restarts_back_off_and_end():
    restarts = Restarts(limit=6, window_seconds=100, first_delay=1, longest_delay=5)
    assert [restarts.next_delay(now) for now in range(7)] == [0, 1, 2, 4, 5, 5, None]
    assert restarts.next_delay(101.5) == 5, "those of the first two seconds count no longer"
    assert restarts.next_delay(1000) == 0
