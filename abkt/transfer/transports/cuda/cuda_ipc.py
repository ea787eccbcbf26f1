"""CUDA IPC, between processes of one host whose GPUs reach each other. GPU bytes go from pool to ring to pool, without host memory.

The side that connects allocates two rings on its GPU and exports them; the other side imports (maps) them. Neither side sees the other's
pool. A connection has two lanes: the device lane is these rings, and the host lane carries headers and coded streams through shared memory,
as in shm.py. In front of each run of bytes in one kind of memory, the host lane carries a record: (on a device, how many bytes). Each lane
has a socket for its counts.

With a key, tags are computed on the host (protocol/tags.py), so all bytes go through host memory. Not run on a GPU yet: the tests use a
stand-in for the driver.
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

from abkt.transfer.buffers import Piece, Space, on_device
from abkt.transfer.device.digest import device_digest
from abkt.transfer.device.digest_oracle import ALIGN_BYTES
from abkt.transfer.device.staging import host_buffers
from abkt.transfer.protocol.frame import DATA_CAP_BYTES
from abkt.transfer.transport import PeerLost, ReceiveProgress
from abkt.transfer.transports.cuda.device_ring import DEVICE_RING_BYTES, DeviceLane, DeviceRings
from abkt.transfer.transports.cuda.driver import HANDLE_BYTES, UUID_BYTES, Driver, DriverError, DriverLibrary, driver_of
from abkt.transfer.transports.cuda.memory import ExportedMemory, ImportedMemory, free_released
from abkt.transfer.transports.ring import RingConnection
from abkt.transfer.transports.shm import CHUNK_BYTES, RING_BYTES, SEALS, SharedRings
from abkt.transfer.transports.stream_socket import StreamListener
from abkt.transfer.transports.unix import connect_unix, listen_unix

MAGIC = b"ABKT ipc"
GREETING = struct.Struct(f"<8sQ{UUID_BYTES}s{HANDLE_BYTES}s")  # MAGIC, bytes of both rings, UUID of their GPU, their IPC handle
RECORD = struct.Struct("<?Q")


class CudaIpc:
    """CUDA IPC. Addresses are paths of a Unix socket.

    driver: the driver of the GPU on which the rings are made; by default that of torch's current GPU at the first use. Raises ValueError,
    one line, if there is no GPU.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        if driver is None:
            DriverLibrary()
        self._given = driver

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> CudaIpcConnection:
        free_released()
        driver = self._driver()
        connected = connect_unix(address, silence_s)
        try:
            return export_rings(driver, connected, address, silence_s)
        except (OSError, DriverError) as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {getattr(error, 'strerror', None) or error}") from None

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        driver = self._driver()

        def make(connected: socket.socket, peer: str) -> CudaIpcConnection:
            return CudaIpcConnection(HostLane(connected, peer, silence_s, driver), peer, silence_s)

        return StreamListener(listen_unix(address), address, make, address)

    def _driver(self) -> Driver:
        import torch

        if torch.cuda.is_available():
            _warm_up()
        return self._given or driver_of(torch.cuda.current_device() if torch.cuda.is_available() else 0)


@cache
def _warm_up() -> None:
    """Compile the digest kernel now: that may take longer than the silence allowed to a peer."""
    import torch

    device_digest([torch.zeros(ALIGN_BYTES, dtype=torch.uint8, device="cuda")])


def export_rings(driver: Driver, connected: socket.socket, peer: str, silence_s: float) -> CudaIpcConnection:
    """The connection of the side that connected: make both lanes' rings and send them to the peer.

    Raises OSError or DriverError; then everything but the socket has been released.
    """
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("abkt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with ExitStack() as undo:
        undo.callback(ours.close)
        with theirs, closing_file(memory):
            os.ftruncate(memory, 2 * RING_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            exported = ExportedMemory(driver, 2 * DEVICE_RING_BYTES)
            undo.callback(exported.close)
            with closing_file(exported.release_fd):
                greeting = GREETING.pack(MAGIC, 2 * DEVICE_RING_BYTES, driver.uuid, exported.handle)
                socket.send_fds(connected, [greeting], [memory, theirs.fileno(), exported.release_fd])
            host = HostLane(connected, peer, silence_s, driver)
            rings = SharedRings(memory, first=True)
            undo.callback(rings.close)
        host.device_lane = DeviceLane(ours, peer, silence_s, DeviceRings(driver, exported, first=True))
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
    """One byte stream over two lanes, the host lane and the device lane."""

    device = True
    frame_bytes = DATA_CAP_BYTES

    def __init__(self, host: HostLane, peer: str, silence_s: float) -> None:
        self.peer = peer
        self._host = host
        self._silence_s = silence_s
        self._record_rest = 0  # bytes of the last record that are still to be received
        self._record_on_device = False

    def send(self, buffers: Sequence[Piece], on_wait: Callable[[], None]) -> int:
        """GPU bytes that fit into the ring are put there first, so that their record can be sent together with the host bytes."""
        calls, host_pieces = 0, list[Piece]()
        for device, group in groupby(filter(len, buffers), on_device):
            pieces = list(group)
            size = sum(map(len, pieces))
            host_pieces.append(RECORD.pack(device, size))
            if not device:
                host_pieces += pieces
                continue
            if not (self._host.device_lane and self._host.device_lane.fits(size)):
                calls += self._host.send(host_pieces, on_wait)  # type: ignore[arg-type]
                host_pieces = []
            calls += self._device_lane().send(pieces, on_wait)
        return calls + self._host.send(host_pieces, on_wait)  # type: ignore[arg-type]

    def receive(self, buffers: Sequence[Space], on_wait: Callable[[], None]) -> None:
        progress = ReceiveProgress(self.peer, self._silence_s)
        todo = [buffer for buffer in buffers if len(buffer)]
        while todo:
            if not self._record_rest:
                record = bytearray(RECORD.size)
                self._host.receive([memoryview(record)], on_wait)
                self._record_on_device, self._record_rest = RECORD.unpack(record)
            now, todo = _split(todo, self._record_rest)
            size = sum(map(len, now))
            if self._record_on_device:
                self._device_lane().receive(now, on_wait)  # type: ignore[arg-type]
            else:
                with host_buffers(now) as host:
                    self._host.receive(host, on_wait)
            self._record_rest -= size
            progress.add(size)

    def readable(self, timeout_s: float) -> bool:
        lane = self._device_lane() if self._record_rest and self._record_on_device else self._host
        return lane.readable(timeout_s)

    def abort(self) -> None:
        self._host.abort()

    def close(self) -> None:
        self._host.close()

    def _device_lane(self) -> DeviceLane:
        if not self._host.device_lane:  # it comes with the greeting, before any other byte
            raise PeerLost(f"{self.peer} has gone")
        return self._host.device_lane


def _split(buffers: Sequence[Space], size: int) -> tuple[list[Space], list[Space]]:
    """The first `size` bytes of the buffers, or all of them, and the rest."""
    first: list[Space] = []
    for index, buffer in enumerate(buffers):
        if len(buffer) > size:
            return ([*first, buffer[:size]] if size else first), [buffer[size:], *buffers[index + 1 :]]
        first.append(buffer)
        size -= len(buffer)
    return first, []


class HostLane(RingConnection):
    """The lane for bytes in host memory. The side that connected sends the rings of both lanes with the first bytes on the socket."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, driver: Driver) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)
        self._driver = driver
        self._aborted = False
        self.device_lane: DeviceLane | None = None

    def _receive_greeting(self) -> SharedRings:
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
                self.device_lane = self._import_rings(given[1], given[2], uuid, handle)
            except (OSError, ValueError):
                rings.close()
                raise
            if self._aborted:
                self.device_lane.abort()
            return rings
        except OSError as error:
            raise ValueError(f"gave memory that cannot be used: {error}") from None
        finally:
            for each in given:
                os.close(each)

    def _import_rings(self, count_socket: int, release_fd: int, uuid: bytes, handle: bytes) -> DeviceLane:
        with ExitStack() as undo:
            if not stat.S_ISSOCK(os.fstat(count_socket).st_mode):
                raise ValueError("does not speak this protocol")
            connected = undo.enter_context(socket.socket(fileno=os.dup(count_socket)))
            if connected.family != socket.AF_UNIX or connected.type != socket.SOCK_STREAM:
                raise ValueError("does not speak this protocol")
            try:
                imported = ImportedMemory(self._driver, handle, 2 * DEVICE_RING_BYTES, release_fd)
                undo.callback(imported.close)
                rings = DeviceRings(self._driver, imported, first=False)
            except DriverError as error:
                raise ValueError(f"exported memory of GPU {uuid.hex()}, which GPU {self._driver.uuid.hex()} cannot use: {error}") from None
            undo.pop_all()
        return DeviceLane(connected, self.peer, self._silence_s, rings)

    def abort(self) -> None:
        self._aborted = True
        super().abort()
        if self.device_lane:
            self.device_lane.abort()

    def close(self) -> None:
        super().close()
        if self.device_lane:
            self.device_lane.close()
