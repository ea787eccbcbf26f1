"""CUDA IPC: between processes of one host whose GPUs reach each other. What lies on a GPU goes pool, ring, pool, and never to the host.

The side that connects allocates two rings on its GPU and lends them; the other maps them. Neither sees the other's pool. What lies in the
host's memory, headers and coded streams, goes through shared memory as in shm.py, and in front of each stretch of bytes that is in one
kind of memory goes a record there: (on a device, how many bytes). Each kind has a socket for its counts.

With a key, tags are the host's (tags.py): then all bytes go through the host's memory. Untried on a GPU; the tests have a driver that
stands in for one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import groupby

from abkt.transfer.device import digest as device_digest
from abkt.transfer.device.pieces import Piece, Space, hosted, on_device
from abkt.transfer.protocol.frame import DATA_CAP_BYTES
from abkt.transfer.transport import PeerLost, TransportProgress
from abkt.transfer.transports.cuda.device_ring import DEVICE_RING_BYTES, DeviceLane, DeviceRings
from abkt.transfer.transports.cuda.driver import HANDLE_BYTES, UUID_BYTES, Driver, DriverError, Library, driver_of
from abkt.transfer.transports.cuda.memory import ExportedMemory, ImportedMemory, sweep
from abkt.transfer.transports.ring import RingConnection
from abkt.transfer.transports.shm import CHUNK_BYTES, RING_BYTES, SEALS, SharedRings
from abkt.transfer.transports.stream_socket import StreamListener
from abkt.transfer.transports.unix import bound, reached

MAGIC = b"ABKT ipc"
GREETING = struct.Struct(f"<8sQ{UUID_BYTES}s{HANDLE_BYTES}s")  # bytes of both rings, the GPU that they are on, what they are opened by
RECORD = struct.Struct("<?Q")


class CudaIpc:
    """Addresses are paths, of the Unix socket. driver: of the GPU for the rings; of torch's current one unless it is given, from its
    first use on.

    Raises ValueError, one line, where there is none.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        if driver is None:
            Library()
        self._given = driver

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> CudaIpcConnection:
        sweep()
        driver = self._driver()
        connected = reached(address, silence_s)
        try:
            return lending(driver, connected, address, silence_s)
        except (OSError, DriverError) as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {getattr(error, 'strerror', None) or error}") from None

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        driver = self._driver()

        def made(connected: socket.socket, peer: str) -> CudaIpcConnection:
            return CudaIpcConnection(HostLane(connected, peer, silence_s, driver), peer, silence_s)

        return StreamListener(bound(address), address, made, address)

    def _driver(self) -> Driver:
        import torch

        if torch.cuda.is_available():
            _warm_up()
        return self._given or driver_of(torch.cuda.current_device() if torch.cuda.is_available() else 0)


@cache
def _warm_up() -> None:
    """Compile what digests, which may take longer than a peer may be silent."""
    import torch

    device_digest.digest([torch.zeros(device_digest.ALIGN_BYTES, dtype=torch.uint8, device="cuda")])


def lending(driver: Driver, connected: socket.socket, peer: str, silence_s: float) -> CudaIpcConnection:
    """The side that connected. Raises OSError or DriverError, and then nothing is left of it but the socket."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("abkt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with ExitStack() as undo:
        undo.callback(ours.close)
        with theirs, closing_file(memory):
            os.ftruncate(memory, 2 * RING_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            lent = ExportedMemory(driver, 2 * DEVICE_RING_BYTES)
            undo.callback(lent.end)
            with closing_file(lent.leash):
                greeting = GREETING.pack(MAGIC, 2 * DEVICE_RING_BYTES, driver.uuid, lent.handle)
                socket.send_fds(connected, [greeting], [memory, theirs.fileno(), lent.leash])
            host = HostLane(connected, peer, silence_s, driver)
            rings = SharedRings(memory, first=True)
            undo.callback(rings.close)
        host.beside = DeviceLane(ours, peer, silence_s, DeviceRings(driver, lent, first=True))
        undo.pop_all()
        host.attach(rings)
    return CudaIpcConnection(host, peer, silence_s)


@contextmanager
def closing_file(number: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(number)


class CudaIpcConnection:
    """Two lanes, that of the host and that of the GPU, and one order of bytes over both."""

    device = True
    frame_bytes = DATA_CAP_BYTES

    def __init__(self, host: HostLane, peer: str, silence_s: float) -> None:
        self.peer = peer
        self._host = host
        self._silence_s = silence_s
        self._rest = 0  # bytes of the last record that was read, which are still to be received
        self._beside = False  # whether they lie on the device

    def send(self, buffers: Sequence[Piece], waiting: Callable[[], None]) -> int:
        """What fits goes first to the GPU, and is told with all the rest at once."""
        calls, said = 0, list[Piece]()
        for beside, group in groupby(filter(len, buffers), on_device):
            pieces = list(group)
            size = sum(map(len, pieces))
            said.append(RECORD.pack(beside, size))
            if not beside:
                said += pieces
                continue
            if not (self._host.beside and self._host.beside.fits(size)):
                calls += self._host.send(said, waiting)  # type: ignore[arg-type]
                said = []
            calls += self._device().send(pieces, waiting)
        return calls + self._host.send(said, waiting)  # type: ignore[arg-type]

    def receive(self, buffers: Sequence[Space], waiting: Callable[[], None]) -> None:
        progress = TransportProgress(self.peer, self._silence_s)
        todo = [buffer for buffer in buffers if len(buffer)]
        while todo:
            if not self._rest:
                record = bytearray(RECORD.size)
                self._host.receive([memoryview(record)], waiting)
                self._beside, self._rest = RECORD.unpack(record)
            now, todo = _first(todo, self._rest)
            size = sum(map(len, now))
            if self._beside:
                self._device().receive(now, waiting)  # type: ignore[arg-type]
            else:
                with hosted(now) as host:
                    self._host.receive(host, waiting)
            self._rest -= size
            progress.came(size)

    def readable(self, timeout_s: float) -> bool:
        lane = self._device() if self._rest and self._beside else self._host
        return lane.readable(timeout_s)

    def abort(self) -> None:
        self._host.abort()

    def close(self) -> None:
        self._host.close()

    def _device(self) -> DeviceLane:
        if not self._host.beside:  # it comes with the greeting, which comes before anything else
            raise PeerLost(f"{self.peer} has gone")
        return self._host.beside


def _first(buffers: Sequence[Space], size: int) -> tuple[list[Space], list[Space]]:
    """The first `size` bytes of the buffers, or all, and what is behind them."""
    first: list[Space] = []
    for index, buffer in enumerate(buffers):
        if len(buffer) > size:
            return ([*first, buffer[:size]] if size else first), [buffer[size:], *buffers[index + 1 :]]
        first.append(buffer)
        size -= len(buffer)
    return first, []


class HostLane(RingConnection):
    """Of bytes in the host's memory. The side that was connected to is given the rings of both lanes with the first bytes of the socket."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, driver: Driver) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)
        self._driver = driver
        self._aborted = False
        self.beside: DeviceLane | None = None

    def _meet(self) -> SharedRings:
        greeting, given, _, _ = socket.recv_fds(self._socket, GREETING.size, 3, socket.MSG_DONTWAIT)
        try:
            if not greeting:
                raise ValueError("closed the connection")
            if len(greeting) != GREETING.size or len(given) != 3:
                raise ValueError("does not speak this protocol")
            magic, size, uuid, handle = GREETING.unpack(greeting)
            if magic != MAGIC or size != 2 * DEVICE_RING_BYTES or not stat.S_ISFIFO(os.fstat(given[2]).st_mode):
                raise ValueError("does not speak this protocol")
            rings = SharedRings(given[0], first=False)
            try:
                self.beside = self._borrowing(given[1], given[2], uuid, handle)
            except (OSError, ValueError):
                rings.close()
                raise
            if self._aborted:
                self.beside.abort()
            return rings
        except OSError as error:
            raise ValueError(f"gave memory that cannot be used: {error}") from None
        finally:
            for each in given:
                os.close(each)

    def _borrowing(self, counting: int, leash: int, uuid: bytes, handle: bytes) -> DeviceLane:
        with ExitStack() as undo:
            if not stat.S_ISSOCK(os.fstat(counting).st_mode):
                raise ValueError("does not speak this protocol")
            connected = undo.enter_context(socket.socket(fileno=os.dup(counting)))
            if connected.family != socket.AF_UNIX or connected.type != socket.SOCK_STREAM:
                raise ValueError("does not speak this protocol")
            try:
                borrowed = ImportedMemory(self._driver, handle, 2 * DEVICE_RING_BYTES, leash)
                undo.callback(borrowed.end)
                rings = DeviceRings(self._driver, borrowed, first=False)
            except DriverError as error:
                raise ValueError(f"lent memory of GPU {uuid.hex()}, which GPU {self._driver.uuid.hex()} cannot use: {error}") from None
            undo.pop_all()
        return DeviceLane(connected, self.peer, self._silence_s, rings)

    def abort(self) -> None:
        self._aborted = True
        super().abort()
        if self.beside:
            self.beside.abort()

    def close(self) -> None:
        super().close()
        if self.beside:
            self.beside.close()
