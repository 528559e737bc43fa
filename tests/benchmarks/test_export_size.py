"""The benchmark of an export's memory, on a small model."""

import json
import subprocess
import sys
import time

import psutil

COMMAND = [sys.executable, "-m", "hebbline.benchmarks.export_size", "--size", "tiny", "--work"]


def test_memory_and_time_of_an_export_are_measured(tmp_path):
    done = subprocess.run([*COMMAND, tmp_path / "work"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert 100e6 < found["peak_bytes"] < found["most_bytes"] and found["seconds"] > 1
    assert found["artifact_bytes"] and found["parity"] and not (tmp_path / "work").exists()


def test_the_export_ends_with_the_benchmark(tmp_path):
    with subprocess.Popen([*COMMAND, tmp_path / "work"], stderr=subprocess.DEVNULL) as benchmark:
        started = time.monotonic()
        while not (exports := psutil.Process(benchmark.pid).children()):
            assert time.monotonic() - started < 120 and benchmark.poll() is None
            time.sleep(0.05)
        benchmark.terminate()
        assert benchmark.wait(60) == 128 + 15
    psutil.wait_procs(exports, timeout=10)
    assert not any(export.is_running() for export in exports)
