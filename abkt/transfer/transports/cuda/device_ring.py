"""The rings of a connection that are in GPU memory, and the lane over them. Copies run on a CUDA stream of their own."""

from __future__ import annotations

import ctypes
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from abkt.transfer.buffers import Piece, Space
from abkt.transfer.transports.cuda.driver import Driver, DriverError
from abkt.transfer.transports.cuda.memory import ExportedMemory, ImportedMemory
from abkt.transfer.transports.ring import RingConnection

DEVICE_RING_BYTES = 16 << 20
DEVICE_CHUNK_BYTES = 4 << 20

log = logging.getLogger(__name__)


class DeviceLane(RingConnection):
    """The lane for bytes on a GPU. When a call returns or raises, no copy is pending that reads or writes the memory it was given."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, rings: DeviceRings) -> None:
        super().__init__(connected, peer, silence_s, DEVICE_CHUNK_BYTES)
        self._device_rings = rings
        self.attach(rings)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes can be put without waiting for the peer."""
        self._read_counts()
        return size <= self._free

    def send(self, buffers: Sequence[Piece], on_wait: Callable[[], None]) -> int:  # type: ignore[override]
        """Returns the number of copies that it took."""
        before = self._device_rings.puts
        with self._wait_on_error():
            super().send(buffers, on_wait)  # type: ignore[arg-type]
        return self._device_rings.puts - before

    def receive(self, buffers: Sequence[Space], on_wait: Callable[[], None]) -> None:  # type: ignore[override]
        with self._wait_on_error():
            super().receive(buffers, on_wait)  # type: ignore[arg-type]

    @contextmanager
    def _wait_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._device_rings.wait()
            raise

    def _view(self, buffer: Piece) -> Piece:  # type: ignore[override]
        return buffer


class DeviceRings:
    """Two rings in GPU memory. first: this side exported the memory.

    Pieces that are put are tensors; a piece may be taken into a tensor or into host memory.
    """

    size = DEVICE_RING_BYTES

    def __init__(self, driver: Driver, memory: ExportedMemory | ImportedMemory, first: bool) -> None:
        self._driver = driver
        self._memory = memory
        self._stream = driver.create_stream()
        rings = memory.address, memory.address + DEVICE_RING_BYTES
        self._out, self._in = rings if first else rings[::-1]
        self.puts = 0
        self._closed = False

    def put(self, at: int, piece: Space) -> None:
        self._driver.copy(self._out + at, _address(piece), len(piece), self._stream)
        self.puts += 1

    def wait_put(self) -> None:
        self.wait()

    def take(self, at: int, piece: Space) -> None:
        self._driver.copy(_address(piece), self._in + at, len(piece), self._stream)

    def wait_taken(self) -> None:
        self.wait()

    def wait(self) -> None:
        """Wait for all copies of this side."""
        self._driver.wait(self._stream)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._driver.wait(self._stream)
            self._driver.destroy_stream(self._stream)
        except DriverError as error:
            log.warning("a CUDA stream could not be destroyed: %s", error)
        self._memory.close()


def _address(piece: Space) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(piece)) if isinstance(piece, memoryview) else piece.data_ptr()
