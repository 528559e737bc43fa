"""However a benchmark ends, its files and processes go; and rows are there before it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from hebbline.benchmarks import endings
from hebbline.benchmarks.endings import scratch_directory

SECONDS = 240
"""More than anything here takes, on a machine that has other things to do."""


@contextmanager
def bench(*options, temporary, as_json=False, hangup=signal.SIG_DFL):
    """The command in a process group of its own, which is killed at the end."""

    def as_in_a_terminal():
        # A shell's background jobs ignore Ctrl-C, those below nohup SIGHUP, and so would what they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, hangup)

    process = subprocess.Popen(
        [sys.executable, "-m", "hebbline", "bench", *map(str, options), *(["--json"] if as_json else [])],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(stream, text):
    """The lines up to the one that holds `text`; fails where the stream ends before."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"no '{text}' in {''.join(lines)}")


def folders(temporary):
    return sorted(temporary.glob("hebbline-*"))


def processes(group):
    """Process ids of a group, without those that have ended and are not reaped yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it went meanwhile
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(is_so, what):
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def temporary(tmp_path):
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("number", "step", "code"),
    [
        (signal.SIGTERM, "reading", 128 + signal.SIGTERM),
        (signal.SIGHUP, "building dense float32", 128 + signal.SIGHUP),
        (signal.SIGINT, "loading sparse float32", 130),
        (signal.SIGTERM, "timing decode", 128 + signal.SIGTERM),
    ],
)
def test_a_model_benchmark_that_is_ended_leaves_nothing(number, step, code, tiny_model_directory, temporary):
    """At whatever step; Ctrl-C reaches the whole group, as in a terminal."""
    options = ("--context", 20, "--prefill", 16, "--variants", "sparse float32")
    with bench("model", tiny_model_directory, *options, temporary=temporary, as_json=True) as process:
        read_until(process.stderr, step)
        assert len(folders(temporary)) == 1
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        printed, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert not folders(temporary)
        assert json.loads(printed)["left_out"] == 2
        wait_until(lambda: not processes(process.pid), "its processes go")


def test_a_model_benchmark_that_is_killed_takes_its_processes_along_and_the_next_removes_its_files(
    tiny_model_directory, temporary
):
    options = ("model", tiny_model_directory, "--context", 20, "--prefill", 16)
    with bench(*options, temporary=temporary) as process:
        read_until(process.stderr, "loading dense float32")
        process.kill()
        wait_until(lambda: not processes(process.pid), "its processes go")
    (left,) = folders(temporary)
    with bench(*options, temporary=temporary) as process:
        read_until(process.stderr, "reading")
        assert left not in folders(temporary)


def test_a_busy_process_ends_with_its_parent():
    """One that does not notice that nobody waits for its answer."""
    program = """
import time
from functools import partial
from hebbline.artifacts import CheckError
from hebbline.benchmarks.processes import Helper

with Helper("sleep", partial, time.sleep) as helper:
    helper.ask(0)
    try:
        helper.ask(1000, 0.1)
    except CheckError:
        print("busy", flush=True)
    time.sleep(1000)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            read_until(process.stdout, "busy")
            process.kill()
            wait_until(lambda: not processes(process.pid), "its process goes")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_linear_benchmark_prints_rows_before_its_end(temporary):
    """Each is whole on its line, on stdout and stderr; what was printed is one document when the run is cut short."""
    # Rows of too few bytes to fill a buffer: they are seen because each is flushed.
    options = ("linear", "--shapes", "256x256", "--threads", "1,2", "--densities", 0.3, "--values", "float32")
    with bench(*options, temporary=temporary, as_json=True) as process:
        lines = read_until(process.stdout, '"max_rel_err"')
        shown = read_until(process.stderr, "bitmask")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=SECONDS)
    row = json.loads(lines[-1].lstrip(","))
    assert (row["density"], row["tokens"], row["values"]) == (0.3, 1, "float32")
    assert f"{row['us']:.1f}" in shown[-1]
    document = json.loads("".join(lines) + printed)
    assert process.returncode == 128 + signal.SIGTERM
    assert document["rows"][0] == row
    assert document["left_out"] == 4 * 2 - len(document["rows"]) > 0
    assert not folders(temporary)


def test_a_model_benchmark_prints_rows_before_its_end(tiny_model_directory, temporary):
    options = ("--context", 20, "--prefill", 16, "--batches", 1)
    with bench("model", tiny_model_directory, *options, temporary=temporary, as_json=True) as process:
        lines = read_until(process.stdout, '"variant": "sparse float32"')
        assert process.poll() is None
    assert json.loads(lines[-1].lstrip(","))["ratios"]["decode 1"] > 0


def test_a_budget_of_seconds_ends_soon(temporary):
    """Layers that would take minutes: the run ends in some seconds more than it may begin measurements."""
    started = time.monotonic()
    with bench("linear", "--budget", 3, "--shapes", "2048x2048,4096x4096", temporary=temporary) as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "--budget 3: the time is over, and " in errors and " of 96 rows were left out" in errors
    assert time.monotonic() - started < 60


def test_nohup_is_respected(temporary):
    """What was started with SIGHUP ignored goes on after one."""
    with bench("linear", "--shapes", "64x96", temporary=temporary, hangup=signal.SIG_IGN) as process:
        read_until(process.stderr, "bitmask")
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_only_abandoned_folders_of_ours_are_removed(temporary, monkeypatch):
    monkeypatch.setattr(endings.tempfile, "tempdir", str(temporary))
    other = temporary / "hebbline-bench-other"
    other.mkdir()
    (other / "kept").touch()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (temporary / "hebbline-bench-link").symlink_to(elsewhere)
    with scratch_directory() as held:
        with scratch_directory() as directory:
            (directory / "file").touch()
        assert held.is_dir() and not directory.exists()
        assert (other / "kept").exists()  # nothing in it says that it is ours
        assert elsewhere.is_dir() and (elsewhere / ".lock").exists()
    assert not held.exists()
    abandoned = temporary / "hebbline-bench-abandoned"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    (abandoned / "weights").write_bytes(bytes(100))
    with scratch_directory():
        assert not abandoned.exists()


def test_a_signal_during_clean_up_waits_for_its_end():
    with endings.signals_raise():
        done = False
        with pytest.raises(SystemExit) as caught, endings.signals_wait():
            signal.raise_signal(signal.SIGTERM)
            done = True
        assert done and caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
