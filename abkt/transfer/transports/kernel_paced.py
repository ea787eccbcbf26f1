"""TCP over a link that the kernel holds back: a real one, one shaped by tc, or the socket's own pacing.

What the kernel has taken has not left yet. Here `send` returns when the bytes have passed, but for what keeps the link busy: so the time
that a frame took is the link's, the estimate made of it is the link's rate, and what has not left can still be decided.

What is kept under way across a long link is not waited for, so there a transfer seems faster than it was by up to two round trips of
bytes, and one of fewer bytes than that says nothing of its rate.
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

from abkt.transfer.protocol.frame import Buffer
from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.stream_socket import StreamConnection
from abkt.transfer.transports.tcp import UNSENT_BYTES, Tcp, _parsed

SO_MAX_PACING_RATE = 47  # of asm-generic/socket.h; the socket module does not name it
UNPACED = (1 << 64) - 1
SEGMENT_BYTES = 1448  # Ethernet's, on loopback too, where 64 KiB would pass at once however slow the pace
AHEAD_S = 2.5e-4
NAP_S = (1e-4, 2e-3)
_INFO = struct.Struct("@8B24IQQQQ6IQ")  # struct tcp_info up to tcpi_delivery_rate
_MSS, _SACKED, _PACING, _MIN_RTT, _DELIVERY = 10, 13, 32, 39, 42


class KernelPaced(Tcp):
    """As Tcp. pace(bytes_per_s) holds its connections to a rate, those that are there and those that will be; inf: not at all."""

    def __init__(self, bytes_per_s: float = math.inf) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._connections: list[PassingConnection] = []

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> PassingConnection:
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
        connection = PassingConnection(connected, address, silence_s, self._forget)
        with self._lock:
            self._connections.append(connection)
            connection.pace(self._bytes_per_s)
        return connection

    def pace(self, bytes_per_s: float) -> None:
        with self._lock:
            self._bytes_per_s = bytes_per_s
            for connection in self._connections:
                connection.pace(bytes_per_s)

    def _forget(self, connection: PassingConnection) -> None:
        with self._lock:
            self._connections.remove(connection)


class PassingConnection(StreamConnection):
    """closed(self) is called before its socket is closed."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, closed: Callable[[PassingConnection], None]) -> None:
        super().__init__(connected, peer, silence_s)
        self._closed = closed
        self._sent_bytes = self._sent_s = 0.0  # of the last sends, half as much each time

    def pace(self, bytes_per_s: float) -> None:
        rate = UNPACED if math.isinf(bytes_per_s) else max(1, round(bytes_per_s))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@Q", rate))

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        begun_s = moved_s = time.monotonic()
        calls = super().send(buffers, waiting)
        waits = self._waits()
        while waits.held > waits.keep:
            waiting()
            time.sleep(min(max((waits.held - waits.keep) / waits.bytes_per_s, NAP_S[0]), NAP_S[1]))
            before, waits = waits, self._waits()
            if waits.held < before.held:
                moved_s = time.monotonic()
            else:
                self._complain(moved_s)
        self._sent_bytes = self._sent_bytes / 2 + sum(len(buffer) for buffer in buffers)
        self._sent_s = self._sent_s / 2 + time.monotonic() - begun_s
        return calls

    def close(self) -> None:
        self._closed(self)
        super().close()

    def _waits(self) -> Waits:
        """keep: twice what is under way at this rate, so that the rate can grow; what passes while this thread wakes up; and two
        segments, which a peer may leave without an acknowledgement. The kernel's own rates may be those of a burst, so what was
        sent so far counts too; a new connection begins with two segments."""
        info = _INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
        queued = int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), "little")
        sent = self._sent_bytes / self._sent_s if self._sent_s else 0.0
        rate = min(info[_DELIVERY], info[_PACING], 2 * sent)
        keep = max(2 * info[_MSS], rate * (2e-6 * info[_MIN_RTT] + AHEAD_S))
        return Waits(queued - info[_SACKED] * info[_MSS], keep, max(rate, 1.0))


class Waits(NamedTuple):
    """held: bytes that have not come to the peer's kernel. keep: how many of them may be left to the link. bytes_per_s: its likely rate."""

    held: int
    keep: float
    bytes_per_s: float
