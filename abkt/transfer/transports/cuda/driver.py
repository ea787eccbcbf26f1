"""The calls of the CUDA driver that are needed to share memory between processes, through ctypes on libcuda (a stable, public API).

Addresses are integers. Memory and streams belong to the primary context of one GPU, which torch uses as well. Each call makes this context
current in the calling thread, and restores the thread's context afterwards.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

HANDLE_BYTES = 64
UUID_BYTES = 16
LIBRARY = "libcuda.so.1"
STREAM_NON_BLOCKING = 1
LAZY_ENABLE_PEER_ACCESS = 1


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle; passed by value."""

    _fields_ = (("reserved", c_char * HANDLE_BYTES),)


class DeviceUuid(ctypes.Structure):
    """CUuuid."""

    _fields_ = (("data", c_char * UUID_BYTES),)


CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid_v2": (POINTER(DeviceUuid), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuIpcGetMemHandle": (POINTER(IpcHandle), c_uint64),
    "cuIpcOpenMemHandle_v2": (POINTER(c_uint64), IpcHandle, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class DriverError(RuntimeError):
    """A call failed. The message is one line with the name of the call and the driver's error."""


class DriverLibrary:
    """The driver's functions by name. gpus: number of GPUs. Raises ValueError, one line, if there is no driver or no GPU."""

    def __init__(self, path: str = LIBRARY) -> None:
        try:
            library = ctypes.CDLL(path)
            self._calls = {name: getattr(library, name) for name in CALLS}
        except (OSError, AttributeError) as error:
            raise ValueError(f"CUDA IPC needs an NVIDIA GPU and its driver: {error}") from None
        for name, types in CALLS.items():
            self._calls[name].argtypes, self._calls[name].restype = types, c_int
        count = c_int()
        try:
            self("cuInit", 0)
            self("cuDeviceGetCount", byref(count))
        except DriverError as error:
            raise ValueError(f"CUDA IPC needs an NVIDIA GPU that works: {error}") from None
        self.gpus = count.value
        if not self.gpus:
            raise ValueError("CUDA IPC needs an NVIDIA GPU, and this process sees none")

    def __call__(self, name: str, *given: Any) -> None:
        """Call a function. Raises DriverError if it fails."""
        if code := self._calls[name](*given):
            text = c_char_p()
            known = self._calls["cuGetErrorName"](code, byref(text)) == 0
            raise DriverError(f"{name}: {text.value.decode() if known and text.value else f'error {code}'}")


class Driver:
    """The driver for one GPU, by its ordinal in this process. Thread-safe. Raises ValueError, one line, if there is no such GPU.

    The GPU's primary context is kept for as long as the process lives.
    """

    def __init__(self, ordinal: int = 0, library: str = LIBRARY) -> None:
        self._call = DriverLibrary(library)
        if not 0 <= ordinal < self._call.gpus:
            raise ValueError(f"CUDA IPC needs GPU {ordinal}, but this process sees {self._call.gpus}")
        device, context, uuid = c_int(), c_void_p(), DeviceUuid()
        try:
            self._call("cuDeviceGet", byref(device), ordinal)
            self._call("cuDeviceGetUuid_v2", byref(uuid), device)
            self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        except DriverError as error:
            raise ValueError(f"CUDA IPC needs an NVIDIA GPU that works: {error}") from None
        self.uuid = bytes(uuid)
        self._context = context

    def allocate(self, size: int) -> int:
        address = c_uint64()
        with self._current():
            self._call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        with self._current():
            self._call("cuMemFree_v2", address)

    def export_handle(self, address: int) -> bytes:
        """The IPC handle by which another process opens an allocation."""
        handle = IpcHandle()
        with self._current():
            self._call("cuIpcGetMemHandle", byref(handle), address)
        return bytes(handle)

    def open_handle(self, handle: bytes) -> int:
        """Map an allocation of another process, and return its address here. Its GPU must be reachable from this one.

        CUDA refuses a handle of this process's own memory.
        """
        address = c_uint64()
        with self._current():
            self._call("cuIpcOpenMemHandle_v2", byref(address), IpcHandle.from_buffer_copy(handle), LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def close_handle(self, address: int) -> None:
        """Unmap what `open_handle` has mapped. Its owner may free the memory afterwards."""
        with self._current():
            self._call("cuIpcCloseMemHandle", address)

    def bytes_from(self, address: int) -> int:
        """Bytes from this address to the end of its allocation."""
        base, size = c_uint64(), c_size_t()
        with self._current():
            self._call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        return base.value + size.value - address

    def create_stream(self) -> int:
        """A stream that does not wait for other streams, nor for the default one."""
        stream = c_void_p()
        with self._current():
            self._call("cuStreamCreate", byref(stream), STREAM_NON_BLOCKING)
        assert stream.value is not None
        return stream.value

    def destroy_stream(self, stream: int) -> None:
        with self._current():
            self._call("cuStreamDestroy_v2", stream)

    def copy(self, to: int, at: int, size: int, stream: int) -> None:
        """Copy between any two addresses, also of host memory. The copy may be pending until `wait`."""
        with self._current():
            self._call("cuMemcpyAsync", to, at, size, stream)

    def wait(self, stream: int) -> None:
        """Wait for all copies on a stream."""
        with self._current():
            self._call("cuStreamSynchronize", stream)

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))


_DRIVERS: dict[int, Driver] = {}
_LOCK = threading.Lock()


def driver_of(ordinal: int) -> Driver:
    """This process's driver for a GPU. Raises ValueError as Driver does."""
    with _LOCK:
        if ordinal not in _DRIVERS:
            _DRIVERS[ordinal] = Driver(ordinal)
        return _DRIVERS[ordinal]
