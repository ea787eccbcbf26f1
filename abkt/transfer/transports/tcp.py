"""TCP without Nagle's delay, and with few unsent bytes in the kernel, so that the cut of a transfer can still be moved late."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from abkt.transfer.buffers import Buffer
from abkt.transfer.transport import PeerLost, ReceiveProgress
from abkt.transfer.transports.stream_socket import BACKLOG, IOV_MAX, StreamConnection, StreamListener, rest_after

UNSENT_BYTES = 128 << 10
AWAITED_BYTES = (64 << 10, 1 << 20)  # shorter payloads are read as they come; of longer ones, at most this much is awaited at once


class Tcp:
    """TCP between any two hosts. Without a key only loopback addresses are allowed.

    Addresses are host:port, with an IP address or localhost as the host. Listening at port 0 takes a free port.
    """

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
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} of {host} is in use; give another one, or 0 for a free one") from None
            raise ValueError(f"cannot listen on {address}: {error.strerror or error}") from None
        address = f"{_quoted(host)}:{listening.getsockname()[1]}"
        return StreamListener(listening, address, lambda connected, peer: TcpConnection(connected, peer, silence_s))


class TcpConnection(StreamConnection):
    """A TCP connection that tunes how much is unsent in the kernel, and how much must arrive to wake the receiver.

    Sending: up to half a frame may stay unsent in the kernel (TCP_NOTSENT_LOWAT). A frame takes about 20 ms on the link, so this is 10 ms.
    It is many bytes for a fast link and few for a slow one; a fixed small limit would wake the sender of a fast link thousands of times a
    second.

    Receiving: a receiver that is faster than its peer would be woken by each segment, which on one host costs more than the copy itself.
    So while a payload is read, the receiver is woken only when as much has arrived as it reads at once (SO_RCVLOWAT). It sleeps in poll and
    not in recvmsg, because the kernel does not count bytes that recvmsg has already taken. Slower data is read every tick.
    """

    frame_bytes = 1 << 20  # a payload of this size is still in the CPU cache when it is copied into the kernel; 512 KiB is no faster

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        super().__init__(connected, peer, silence_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unsent_bytes = 0
        self._awaited_bytes = 1
        self._set_unsent(UNSENT_BYTES)

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        size = sum(len(buffer) for buffer in buffers)
        if size >= UNSENT_BYTES // 2:  # the size of a message says nothing about the link
            self._set_unsent(max(UNSENT_BYTES, size // 2))
        return super().send(buffers, on_wait)

    def receive(self, buffers: Sequence[memoryview], on_wait: Callable[[], None]) -> None:
        size = sum(map(len, buffers))
        if size < AWAITED_BYTES[0]:
            self._await(1)
            super().receive(buffers, on_wait)
            return
        rest: Sequence[Buffer] = buffers
        progress = ReceiveProgress(self.peer, self._silence_s)
        while True:
            got = self._read_available(rest)
            progress.add(got)
            size -= got
            on_wait()
            if not size:
                return
            rest = rest_after(rest, got)
            self._await(min(size, AWAITED_BYTES[1]))
            self._poll.poll(self._tick_s * 1e3)

    def readable(self, timeout_s: float) -> bool:
        self._await(1)
        return super().readable(timeout_s)

    def _read_available(self, buffers: Sequence[Buffer]) -> int:
        """Read what has come, without waiting. Returns the number of bytes."""
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
        """Set how many bytes must be there for poll to return; the end of the connection also makes it return."""
        if size != self._awaited_bytes:
            self._awaited_bytes = size
            with suppress(OSError):  # as in _set_unsent
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _set_unsent(self, unsent_bytes: int) -> None:
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            with suppress(OSError):  # the next use of a broken connection raises PeerLost
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
