"""The op library loads into ONNX Runtime, and refuses one that it was not made for."""

import ctypes
import subprocess
import sys

import onnxruntime
import pytest

from hebbline.artifacts.errors import InputError
from hebbline.kernels import library_path, register

GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
GetVersion = ctypes.CFUNCTYPE(ctypes.c_char_p)
CreateStatus = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
ENTRIES = 300


class ApiBase(ctypes.Structure):
    _fields_ = [("get_api", GetApi), ("get_version", GetVersion)]


def test_register_adds_the_ops():
    register(onnxruntime.SessionOptions())


def test_an_override_that_is_no_file_is_refused(monkeypatch):
    monkeypatch.setenv("HEBBLINE_KERNELS", "/nowhere/library.so")
    with pytest.raises(InputError, match="HEBBLINE_KERNELS=/nowhere"):
        library_path()


def test_a_system_without_kernels_is_told_in_one_line_and_stock_onnx_runtime_still_runs():
    code = (
        "import platform; platform.machine = lambda: 'riscv64'\n"
        "import hebbline.kernels, hebbline.export, onnxruntime\n"
        "hebbline.kernels.LIBRARY_FILE = 'nowhere.so'\n"
        "from hebbline.artifacts.errors import InputError\n"
        "try: hebbline.kernels.register(onnxruntime.SessionOptions())\n"
        "except InputError as error: assert 'not for Linux on riscv64' in str(error)\n"
        "else: raise SystemExit('registered')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("\n") == 1 and "not for Linux on riscv64" in run.stderr


def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path):
    (tmp_path / "library.so").write_text("not a library")
    monkeypatch.setenv("HEBBLINE_KERNELS", str(tmp_path / "library.so"))
    with pytest.raises(InputError, match="cannot load"):
        register(onnxruntime.SessionOptions())


def register_with(version: bytes, entries: int = ENTRIES, offered: int = 16) -> bytes:
    """What the library answers to an ONNX Runtime of this version, all of whose entries are CreateStatus."""
    messages = []

    def create_status(_code, message):
        messages.append(message)
        return 1

    status = CreateStatus(create_status)
    table = (ctypes.c_void_p * ENTRIES)()
    for entry in range(entries):
        table[entry] = ctypes.cast(status, ctypes.c_void_p)
    get_api = GetApi(lambda wanted: ctypes.addressof(table) if wanted <= offered else None)
    base = ApiBase(get_api, GetVersion(lambda: version))
    library = ctypes.CDLL(str(library_path()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert library.RegisterCustomOps(None, ctypes.byref(base))
    return messages[-1]


def test_an_old_or_foreign_onnx_runtime_is_refused():
    """In a process of its own, where no real ONNX Runtime has been bound."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_library import register_with\n"
        "assert b'1.17 or later, this is 1.16.3' in register_with(b'1.16.3')\n"
        "assert b'cannot tell the version' in register_with(b'unknown')\n"
        "assert b'does not offer C API version 16' in register_with(b'1.99.0', offered=15)\n"
        "assert b'lacks entry 200' in register_with(b'1.31.0', entries=200)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(__file__).rsplit("/", 1)[0]], check=True)
