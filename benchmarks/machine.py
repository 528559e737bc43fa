"""What a result must stand beside: the processor, the versions, the commit, and the memory bandwidth of the moment."""

import os
import platform
import subprocess
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..kernels.isa import kernels_isa

_PACKAGES = ("onnxruntime", "numpy", "torch", "openvino", "scipy")
_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_BANDWIDTH_BYTES = 512 << 20


@dataclass(frozen=True)
class Machine:
    """The processor's name, its vector extensions, cores, the versions of what was compared, and hebbline's commit.

    `isa` is the instruction set that the kernels use, see `kernels_isa`.
    """

    processor: str
    isa: str
    features: tuple[str, ...]
    cores: int
    versions: dict[str, str]
    commit: str


def describe_machine() -> Machine:
    """This machine, as /proc and the installed packages tell; InputError as `kernels_isa`."""
    facts = _processor_facts()
    flags = facts.get("flags", "").split()
    return Machine(
        processor=_processor_name(facts),
        isa=kernels_isa(),
        features=tuple(name for name in _FEATURES if name in flags),
        cores=os.cpu_count() or 1,
        versions={name: found for name in _PACKAGES if (found := _version(name))},
        commit=_commit(),
    )


def read_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes a second that `threads` threads read together from memory; the best of some rounds.

    Each thread ORs an array of its own that no cache holds, with NumPy, which lets go of the interpreter meanwhile.
    """
    arrays = [np.ones(_BANDWIDTH_BYTES // 8, np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(rounds):
        workers = [threading.Thread(target=np.bitwise_or.reduce, args=(array,)) for array in arrays]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, threads * _BANDWIDTH_BYTES / (time.perf_counter() - started))
    return best


def _processor_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    pairs = [line.partition(":") for line in lines]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _processor_name(facts: dict[str, str]) -> str:
    """The model's name, and its family and model in numbers: virtual machines leave the generation out of the name."""
    name = facts.get("model name", platform.processor() or platform.machine())
    numbers = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout that this file is in, with a mark where files differ from it; "" without one."""
    root = str(Path(__file__).resolve().parents[1])
    try:
        command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
