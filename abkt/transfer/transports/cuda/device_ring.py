"""The rings of a connection that lie on a GPU, and the lane that goes through them: copies on a stream of its own, each waited for."""

from __future__ import annotations

import ctypes
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from abkt.transfer.device.pieces import Piece, Space
from abkt.transfer.transports.cuda.driver import Driver, DriverError
from abkt.transfer.transports.cuda.memory import ExportedMemory, ImportedMemory
from abkt.transfer.transports.ring import RingConnection

DEVICE_RING_BYTES = 16 << 20
DEVICE_CHUNK_BYTES = 4 << 20

log = logging.getLogger(__name__)


class DeviceLane(RingConnection):
    """Of bytes on a GPU. However a call ends, no copy is under way any more that reads or writes what it was given."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, rings: DeviceRings) -> None:
        super().__init__(connected, peer, silence_s, DEVICE_CHUNK_BYTES)
        self._copied = rings
        self.attach(rings)

    def fits(self, size: int) -> bool:
        """Whether so many bytes can be put without waiting for the peer."""
        self._listen()
        return size <= self._free

    def send(self, buffers: Sequence[Piece], waiting: Callable[[], None]) -> int:  # type: ignore[override]
        """Returns how many copies it took."""
        before = self._copied.puts
        with self._settled():
            super().send(buffers, waiting)  # type: ignore[arg-type]
        return self._copied.puts - before

    def receive(self, buffers: Sequence[Space], waiting: Callable[[], None]) -> None:  # type: ignore[override]
        with self._settled():
            super().receive(buffers, waiting)  # type: ignore[arg-type]

    @contextmanager
    def _settled(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._copied.wait()
            raise

    def _view(self, buffer: Piece) -> Piece:  # type: ignore[override]
        return buffer


class DeviceRings:
    """memory: lent or borrowed; first: of the side that lends it. A piece is a tensor; what is taken may go to the host's memory too."""

    size = DEVICE_RING_BYTES

    def __init__(self, driver: Driver, memory: ExportedMemory | ImportedMemory, first: bool) -> None:
        self._driver = driver
        self._memory = memory
        self._stream = driver.stream()
        rings = memory.address, memory.address + DEVICE_RING_BYTES
        self._out, self._in = rings if first else rings[::-1]
        self.puts = 0
        self._closed = False

    def put(self, at: int, piece: Space) -> None:
        self._driver.copy(self._out + at, _address(piece), len(piece), self._stream)
        self.puts += 1

    def written(self) -> None:
        self.wait()

    def take(self, at: int, piece: Space) -> None:
        self._driver.copy(_address(piece), self._in + at, len(piece), self._stream)

    def read(self) -> None:
        self.wait()

    def wait(self) -> None:
        """For all copies of this side."""
        self._driver.wait(self._stream)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._driver.wait(self._stream)
            self._driver.end(self._stream)
        except DriverError as error:
            log.warning("a stream did not end well: %s", error)
        self._memory.end()


def _address(piece: Space) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(piece)) if isinstance(piece, memoryview) else piece.data_ptr()
