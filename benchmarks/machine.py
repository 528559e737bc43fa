"""What a result must stand beside: the processor, the versions, the commit, and the memory bandwidth of the moment."""

import ctypes
import os
import platform
import subprocess
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from ..artifacts import InputError

_PACKAGES = ("onnxruntime", "numpy", "torch", "openvino", "scipy")
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_BANDWIDTH_BYTES = 512 << 20
ISA_VARIABLE = "HEBBLINE_ISA"
_ISA_FLAGS = {
    "scalar": (),
    "avx2": ("fma", "popcnt", "avx", "f16c", "bmi1", "avx2", "bmi2"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512_vnni"),
    "amx": ("avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
}
"""The instruction sets of the kernels in rising order, and the flags that each needs beside those before it."""
_EMULATED_ISA = "amx-emulated"
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""The system call of x86-64 by which a process asks Linux for the registers of AMX."""


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
        processor=facts.get("model name", platform.processor() or platform.machine()),
        isa=kernels_isa(),
        features=tuple(name for name in _FEATURES if name in flags),
        cores=os.cpu_count() or 1,
        versions={name: found for name in _PACKAGES if (found := _version(name))},
        commit=_commit(),
    )


def kernels_isa() -> str:
    """The instruction set that the kernels use: the best there is, or what HEBBLINE_ISA names.

    The rule is that of `kernels/platform/cpu.cpp`.

    Raises:
        InputError: the variable names no instruction set, or one that this processor lacks.
    """
    found = _isas_here()
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return found[-1]
    if wanted not in (*_ISA_FLAGS, _EMULATED_ISA):
        raise InputError(f"{ISA_VARIABLE}={wanted} is not one of {', '.join((*_ISA_FLAGS, _EMULATED_ISA))}")
    if wanted not in (*found, _EMULATED_ISA):
        raise InputError(f"{ISA_VARIABLE}={wanted}: this processor lacks it; unset the variable")
    return wanted


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


def _isas_here() -> list[str]:
    flags = set(_processor_facts().get("flags", "").split())
    found: list[str] = []
    for isa, needed in _ISA_FLAGS.items():
        if not flags.issuperset(needed) or (isa == "amx" and not _may_use_amx()):
            break
        found.append(isa)
    return found


def _may_use_amx() -> bool:
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _processor_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    pairs = [line.partition(":") for line in lines]
    return {name.strip(): value.strip() for name, _, value in pairs}


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
