"""TCP: no delay, and little in the kernel, so that what has not left yet can still be decided."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from abkt.transfer.protocol.frame import Buffer
from abkt.transfer.transport import PeerLost, TransportProgress
from abkt.transfer.transports.stream_socket import IOV_MAX, StreamConnection, StreamListener, after

UNSENT_BYTES = 128 << 10
AWAITED_BYTES = (64 << 10, 1 << 20)  # payloads shorter than this are read as they come; of others, so much is awaited at most


class Tcp:
    """Addresses are host:port, the host a number or localhost; port 0 takes a free one. Without a key only loopback is served."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> StreamConnection:
        try:
            connected = socket.create_connection(_parsed(address, keyed), timeout=silence_s)
        except OSError as error:
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        return TcpConnection(connected, address, silence_s)

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        host, port = _parsed(address, keyed)
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen()
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} of {host} is in use; give another one, or 0 for a free one") from None
            raise ValueError(f"cannot listen on {address}: {error.strerror or error}") from None
        bound = f"{_quoted(host)}:{listening.getsockname()[1]}"
        return StreamListener(listening, bound, lambda connected, peer: TcpConnection(connected, peer, silence_s))


class TcpConnection(StreamConnection):
    """A frame is what a link passes in about 20 ms, so half of one unsent is 10 ms of it: for a fast link many more bytes than for a slow
    one, which would wake its sender a thousand times a second for nothing.

    And a receiver that is faster than its peer would be woken by each segment, at the peer's cost where both are on one host: more than
    the copy itself. So of a payload it is woken by as much as it will read at once (SO_RCVLOWAT). It sleeps in poll, never in a call that
    has taken some already: the kernel counts only what is still there. What comes slower than that is read every tick.
    """

    frame_bytes = 1 << 20  # the copy into the kernel finds what was just sealed in the cache; half as much is no faster

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        super().__init__(connected, peer, silence_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unsent_bytes = 0
        self._awaited_bytes = 1
        self._leave(UNSENT_BYTES)

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        size = sum(len(buffer) for buffer in buffers)
        if size >= UNSENT_BYTES // 2:  # metadata says nothing of the link
            self._leave(max(UNSENT_BYTES, size // 2))
        return super().send(buffers, waiting)

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        size = sum(map(len, buffers))
        if size < AWAITED_BYTES[0]:
            self._await(1)
            super().receive(buffers, waiting)
            return
        rest: Sequence[Buffer] = buffers
        progress = TransportProgress(self.peer, self._silence_s)
        while True:
            got = self._there(rest)
            progress.came(got)
            size -= got
            waiting()
            if not size:
                return
            rest = after(rest, got)
            self._await(min(size, AWAITED_BYTES[1]))
            self._poll.poll(self._tick_s * 1e3)

    def readable(self, timeout_s: float) -> bool:
        self._await(1)
        return super().readable(timeout_s)

    def _there(self, buffers: Sequence[Buffer]) -> int:
        """Read what has come, without waiting: how much that was."""
        try:
            got = self._socket.recvmsg_into(buffers[:IOV_MAX], 0, socket.MSG_DONTWAIT)[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from None
        if not got:
            raise PeerLost(f"{self.peer} closed the connection")
        return got

    def _await(self, size: int) -> None:
        """How many bytes must be there for poll to say so; the end of the connection counts as well."""
        if size != self._awaited_bytes:
            self._awaited_bytes = size
            with suppress(OSError):  # as below
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _leave(self, unsent_bytes: int) -> None:
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            with suppress(OSError):  # a connection that broke is found so by its next use
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)


def _parsed(address: str, keyed: bool) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"address {address!r} is not host:port with a port of at most 65535")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"address {address!r}: the host must be an IP address or localhost") from None
    if not (loopback or keyed):
        raise ValueError(f"address {address!r} is not loopback, so it needs a key: give key_file, or set ABKT_KEY_FILE")
    return host, int(port)


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host
