"""The few calls of the CUDA driver that memory shared between processes needs, by ctypes on libcuda: a public, stable interface.

Addresses are numbers. Memory and streams belong to the primary context of one GPU, which is torch's as well; each call makes it current
in its thread and leaves the thread as it was.
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


class Handle(ctypes.Structure):
    """CUipcMemHandle; passed by value."""

    _fields_ = (("reserved", c_char * HANDLE_BYTES),)


class Uuid(ctypes.Structure):
    _fields_ = (("data", c_char * UUID_BYTES),)


CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid_v2": (POINTER(Uuid), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuIpcGetMemHandle": (POINTER(Handle), c_uint64),
    "cuIpcOpenMemHandle_v2": (POINTER(c_uint64), Handle, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class DriverError(RuntimeError):
    """A call failed; names it and the driver's error. One line."""


class Library:
    """The calls by name. Raises ValueError, one line, where there is no driver, or no GPU that it could drive. gpus: how many there are."""

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
        """Raises DriverError."""
        if code := self._calls[name](*given):
            text = c_char_p()
            known = self._calls["cuGetErrorName"](code, byref(text)) == 0
            raise DriverError(f"{name}: {text.value.decode() if known and text.value else f'error {code}'}")


class Driver:
    """Of one GPU, by its number in this process. Thread-safe. Raises ValueError, one line, where there is no such GPU.

    Its context is kept for as long as the process lives.
    """

    def __init__(self, ordinal: int = 0, library: str = LIBRARY) -> None:
        self._call = Library(library)
        if not 0 <= ordinal < self._call.gpus:
            raise ValueError(f"CUDA IPC needs GPU {ordinal}, but this process sees {self._call.gpus}")
        device, context, uuid = c_int(), c_void_p(), Uuid()
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

    def export(self, address: int) -> bytes:
        """What another process opens an allocation by."""
        handle = Handle()
        with self._current():
            self._call("cuIpcGetMemHandle", byref(handle), address)
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """The address here of another process's allocation, on a GPU that this one reaches. Not of one's own: the driver refuses that."""
        address = c_uint64()
        with self._current():
            self._call("cuIpcOpenMemHandle_v2", byref(address), Handle.from_buffer_copy(handle), LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def close(self, address: int) -> None:
        """Undoes `open`; its owner may free the memory once all have done so."""
        with self._current():
            self._call("cuIpcCloseMemHandle", address)

    def size(self, address: int) -> int:
        """Bytes from here to the end of the allocation that this lies in."""
        base, size = c_uint64(), c_size_t()
        with self._current():
            self._call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        return base.value + size.value - address

    def stream(self) -> int:
        """One that waits for no other, the default one included."""
        stream = c_void_p()
        with self._current():
            self._call("cuStreamCreate", byref(stream), STREAM_NON_BLOCKING)
        assert stream.value is not None
        return stream.value

    def end(self, stream: int) -> None:
        with self._current():
            self._call("cuStreamDestroy_v2", stream)

    def copy(self, to: int, at: int, size: int, stream: int) -> None:
        """Between any two addresses, of the host too; under way until `wait`."""
        with self._current():
            self._call("cuMemcpyAsync", to, at, size, stream)

    def wait(self, stream: int) -> None:
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
    """The one of this process for a GPU. Raises ValueError as Driver does."""
    with _LOCK:
        if ordinal not in _DRIVERS:
            _DRIVERS[ordinal] = Driver(ordinal)
        return _DRIVERS[ordinal]
