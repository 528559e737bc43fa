"""The few calls of the CUDA driver that running an engine or a kernel takes, through ctypes.

The driver comes with every NVIDIA GPU, so nothing has to be installed. Not run where this was written, which has no
GPU: the calls and their order follow NVIDIA's documentation of the driver API.
"""

import ctypes
from typing import Any

LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_SUCCESS = 0


class CudaUnavailableError(RuntimeError):
    """There is no driver, no GPU, or the driver refused a call; the message names it."""


class Driver:
    """The primary context of the first GPU, current in the thread that opened it, and one stream.

    Memory is allocated once and lives as long as the process: there is nothing to free in between.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._stream: ctypes.c_void_p | None = None

    @classmethod
    def open(cls) -> "Driver":
        """Load the driver and find the first GPU; raises CudaUnavailableError."""
        try:
            return cls(ctypes.CDLL(LIBRARY))
        except OSError as error:
            raise CudaUnavailableError(f"the NVIDIA driver's {LIBRARY} cannot be loaded") from error

    def device_name(self) -> str:
        """The GPU's name, such as "NVIDIA L4"."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode()

    def compute_capability(self) -> str:
        """Major and minor number, such as "8.9"."""
        numbers = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            numbers.append(str(value.value))
        return ".".join(numbers)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes; the context must have been made current."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def make_current(self) -> None:
        """Retain the primary context, which other libraries of the process share, and make it this thread's."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    @property
    def stream(self) -> int:
        """The handle of the one stream, made when it is first asked for."""
        if self._stream is None:
            stream = ctypes.c_void_p()
            self._call("cuStreamCreate", ctypes.byref(stream), 0)
            self._stream = stream
        return int(self._stream.value or 0)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes of device memory, set to 0."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        return address.value

    def copy_to_device(self, address: int, source: Any) -> None:
        """Copy a contiguous NumPy array to the device, in order on the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_size_t(source.nbytes),
            ctypes.c_void_p(self.stream),
        )

    def copy_to_host(self, target: Any, address: int) -> None:
        """Copy device memory to a contiguous NumPy array, in order on the stream; wait with `synchronize`."""
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(target.nbytes),
            ctypes.c_void_p(self.stream),
        )

    def synchronize(self) -> None:
        """Wait for everything on the stream; an error of an earlier kernel shows here."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != _SUCCESS:
            raise CudaUnavailableError(f"{name} failed: {self._error_text(status)}")

    def _error_text(self, status: int) -> str:
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorString(status, ctypes.byref(text)) == _SUCCESS and text.value
        return text.value.decode() if known and text.value else f"error {status}"
