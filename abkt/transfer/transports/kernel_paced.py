"""TCP over a link that is slower than the kernel's queue: a real link, one shaped by tc, or a socket with a pacing rate.

When a send call returns, the bytes may still be queued in the kernel. Here `send` returns only when the bytes have reached the peer's
kernel, except for the few that keep the link busy. So the time a frame took is that of the link, a bandwidth estimate made from it is the
link's rate, and the cut of a transfer can still be moved for everything that has not left.

The bytes in flight over a long link are not waited for. There a transfer seems faster than it was by up to two round trips of bytes, and
the time of a transfer that is smaller than that says nothing about the link's rate.
"""

from __future__ import annotations

import fcntl
import math
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from abkt.transfer.buffers import Buffer
from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.stream_socket import StreamConnection
from abkt.transfer.transports.tcp import UNSENT_BYTES, Tcp, _parsed

SO_MAX_PACING_RATE = 47  # of asm-generic/socket.h; the socket module does not name it
UNPACED = (1 << 64) - 1
SEGMENT_BYTES = 1448  # as on Ethernet; on loopback a segment could be 64 KiB, which would pass at once however slow the pace
AHEAD_S = 2.5e-4  # time that the sending thread may take to wake up
NAP_S = (1e-4, 2e-3)  # shortest and longest sleep
_INFO = struct.Struct("@8B24IQQQQ6IQ")  # struct tcp_info up to tcpi_delivery_rate; below, indices of its fields
_MSS, _SACKED, _PACING, _MIN_RTT, _DELIVERY = 10, 13, 32, 39, 42


class KernelPaced(Tcp):
    """TCP whose sends take the time of the link. `pace` limits the rate of its present and future connections; inf: no limit."""

    def __init__(self, bytes_per_s: float = math.inf) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._connections: list[KernelPacedConnection] = []

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> KernelPacedConnection:
        where = _parsed(address, keyed)
        connected = socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
            connected.settimeout(silence_s)
            connected.connect(where)
        except OSError as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        connection = KernelPacedConnection(connected, address, silence_s, self._forget)
        with self._lock:
            self._connections.append(connection)
            connection.pace(self._bytes_per_s)
        return connection

    def pace(self, bytes_per_s: float) -> None:
        with self._lock:
            self._bytes_per_s = bytes_per_s
            for connection in self._connections:
                connection.pace(bytes_per_s)

    def _forget(self, connection: KernelPacedConnection) -> None:
        with self._lock:
            self._connections.remove(connection)


class KernelPacedConnection(StreamConnection):
    """A connection whose `send` waits until the kernel's queue has passed the link. on_close(self) is called when it is closed."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, on_close: Callable[[KernelPacedConnection], None]) -> None:
        super().__init__(connected, peer, silence_s)
        self._on_close = on_close
        self._sent_bytes = self._sent_s = 0.0  # sums over the last sends; each send halves the weight of those before it

    def pace(self, bytes_per_s: float) -> None:
        rate = UNPACED if math.isinf(bytes_per_s) else max(1, round(bytes_per_s))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@Q", rate))

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        begun_s = moved_s = time.monotonic()
        calls = super().send(buffers, on_wait)
        queue = self._kernel_queue()
        while queue.queued_bytes > queue.allowed_bytes:
            on_wait()
            time.sleep(min(max((queue.queued_bytes - queue.allowed_bytes) / queue.bytes_per_s, NAP_S[0]), NAP_S[1]))
            before, queue = queue, self._kernel_queue()
            if queue.queued_bytes < before.queued_bytes:
                moved_s = time.monotonic()
            else:
                self._check_stalled(moved_s)
        self._sent_bytes = self._sent_bytes / 2 + sum(len(buffer) for buffer in buffers)
        self._sent_s = self._sent_s / 2 + time.monotonic() - begun_s
        return calls

    def close(self) -> None:
        self._on_close(self)
        super().close()

    def _kernel_queue(self) -> KernelQueue:
        """The state of the kernel's queue, and how many bytes may be left in it.

        The allowed bytes are the larger of two amounts: two segments, which a peer may leave unacknowledged; and the bytes that pass at the
        likely rate in two round trips (so that the rate can grow) plus the time that this thread takes to wake up. The kernel's rates may
        be those of a burst, so the likely rate is at most twice that of the last sends. A new connection begins with two segments.
        """
        info = _INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
        queued = int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), "little")
        sent = self._sent_bytes / self._sent_s if self._sent_s else 0.0
        rate = min(info[_DELIVERY], info[_PACING], 2 * sent)
        allowed = max(2 * info[_MSS], rate * (2e-6 * info[_MIN_RTT] + AHEAD_S))
        return KernelQueue(queued - info[_SACKED] * info[_MSS], allowed, max(rate, 1.0))


class KernelQueue(NamedTuple):
    """queued_bytes: not yet in the peer's kernel. allowed_bytes: how many may be left when `send` returns. bytes_per_s: likely rate."""

    queued_bytes: int
    allowed_bytes: float
    bytes_per_s: float
