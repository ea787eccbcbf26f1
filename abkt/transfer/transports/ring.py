"""A connection over two ring buffers in memory that both sides reach, one for each direction, and a socket for counts.

A count is the number of bytes put into a ring or, negative, taken out of it. Since the counts go through a socket, the kernel orders
the writes of one side before the reads of the other, a poll finds new bytes, and a peer that dies closes its socket. The transports that
use this (shm.py, nixl.py and cuda/) define the kind of memory and how it is exchanged.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from abkt.transfer.buffers import Buffer
from abkt.transfer.protocol.frame import DATA_CAP_BYTES
from abkt.transfer.transport import TICK_S, PeerLost, PeerSilent, ReceiveProgress

COUNT = struct.Struct("<i")  # bytes put in; negative: taken out


class Rings(Protocol):
    """The two rings as one side uses them. size: bytes of each ring. A piece never wraps around the end of a ring."""

    size: int

    def put(self, at: int, piece: memoryview) -> None:
        """Write a piece at byte `at` of the outgoing ring. The write may be pending until `wait_put`. Raises PeerLost."""
        ...

    def wait_put(self) -> None:
        """Wait until the peer can read everything that was put. Raises PeerLost or PeerSilent."""
        ...

    def take(self, at: int, piece: memoryview) -> None:
        """Read a piece from byte `at` of the incoming ring. The read may be pending until `wait_taken`."""
        ...

    def wait_taken(self) -> None:
        """Wait until everything that was taken has been copied out of the ring."""
        ...

    def close(self) -> None: ...


class Spans:
    """The ranges (start, stop) of a ring that were put and not yet written to the peer, in order. Adjacent ranges are merged."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> None:
        if self._spans and self._spans[-1][1] == start:
            start = self._spans.pop()[0]
        self._spans.append((start, stop))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def clear(self) -> None:
        self._spans.clear()


class RingConnection:
    """One side of a connection over rings. Subclasses define `_receive_greeting`, or call `attach` with rings of their own.

    chunk_bytes: a count is sent after this many bytes, so that the peer copies them while this side puts the next ones.
    """

    device = False
    frame_bytes = DATA_CAP_BYTES

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, chunk_bytes: int) -> None:
        self.peer = peer
        self._socket = connected
        self._silence_s = silence_s
        self._chunk_bytes = chunk_bytes
        connected.setblocking(True)
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(connected, select.POLLIN | select.POLLOUT)
        self._rings: Rings | None = None
        self._size = self._free = 0
        self._head = self._tail = 0  # where the next byte is put, and taken
        self._filled = self._taken = 0  # bytes that can be taken; bytes taken whose count was not sent yet
        self._taken_count_s = 0.0  # when the last count of taken bytes was sent
        self._partial_count = b""
        self._end = ""  # why no further count will come

    def _receive_greeting(self) -> Rings | None:
        """Read from the socket what has come of the peer's greeting: the rings once it is complete, else None. Never blocks.

        Raises BlockingIOError if nothing has come, ValueError if the greeting is not valid, PeerLost if the peer has left.
        """
        raise NotImplementedError

    def attach(self, rings: Rings) -> None:
        self._rings, self._size, self._free = rings, rings.size, rings.size

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        calls = put = 0
        moved_s = time.monotonic()
        for buffer in buffers:
            rest = self._view(buffer)
            while len(rest):
                if put >= self._chunk_bytes or (put and not self._free):
                    self._send_put_count(put)
                    calls, put = calls + 1, 0
                    on_wait()
                if not (self._rings and self._free):
                    if not self._wait_count():
                        self._check_stalled(moved_s)
                    on_wait()
                    continue
                size = min(len(rest), self._free, self._chunk_bytes - put, self._size - self._head)
                self._rings.put(self._head, rest[:size])
                self._head = (self._head + size) % self._size
                self._free -= size
                put += size
                rest = rest[size:]
                moved_s = time.monotonic()
        if put:
            self._send_put_count(put)
            calls += 1
        return calls

    def receive(self, buffers: Sequence[memoryview], on_wait: Callable[[], None]) -> None:
        progress = ReceiveProgress(self.peer, self._silence_s)
        for buffer in buffers:
            rest = buffer
            while len(rest):
                if not (self._rings and self._filled):
                    self._send_taken_count()
                    self._wait_count()
                    progress.add(0)
                    on_wait()
                    continue
                size = min(len(rest), self._filled, self._size // 4, self._size - self._tail)
                self._rings.take(self._tail, rest[:size])
                self._tail = (self._tail + size) % self._size
                self._filled -= size
                self._taken += size
                rest = rest[size:]
                progress.add(size)
                if self._taken >= self._size // 4:
                    self._send_taken_count()
                    self._read_counts()
        if self._rings:
            self._rings.wait_taken()
        if self._taken and time.monotonic() - self._taken_count_s >= TICK_S:  # a slow reader shows that it is alive
            self._send_taken_count()
        on_wait()

    def _view(self, buffer: Buffer) -> memoryview:
        """A buffer as an object that can be sliced and put. Overridden where the rings take other memory than the host's."""
        return memoryview(buffer)

    def readable(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while not (self._filled or self._end):
            if not self._socket_readable(max(0.0, until_s - time.monotonic())):
                return False
            self._read_counts()
            if timeout_s <= 0:
                break
        return bool(self._filled or self._end)

    def abort(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        if self._rings:
            self._rings.close()

    def _send_put_count(self, count: int) -> None:
        assert self._rings is not None
        self._rings.wait_put()
        self._send_bytes(COUNT.pack(count))

    def _send_bytes(self, data: bytes) -> None:
        """Send on the socket. If it is full, read counts meanwhile: the peer may also be blocked in sending."""
        rest, begun_s = memoryview(data), time.monotonic()
        while rest:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._read_counts()
                if not self._writable.poll(min(TICK_S, self._silence_s / 4) * 1e3):
                    self._check_stalled(begun_s)
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None

    def _send_taken_count(self) -> None:
        """Send the count of taken bytes, if the socket has room for it: a peer that waits for the count reads its socket.

        An error is not raised here: the end of the connection is reported once the ring is empty.
        """
        if self._taken and self._rings:
            self._rings.wait_taken()
            with suppress(OSError):
                self._socket.send(COUNT.pack(-self._taken), socket.MSG_DONTWAIT)
                self._taken = 0
                self._taken_count_s = time.monotonic()

    def _wait_count(self) -> bool:
        """Wait for a count, one tick at most. Returns whether one has come. Raises PeerLost if none will come."""
        if self._end:
            raise PeerLost(self._end)
        arrived = self._socket_readable(min(TICK_S, self._silence_s / 4))
        if arrived:
            self._read_counts()
        return arrived

    def _socket_readable(self, timeout_s: float) -> bool:
        """Whether the socket has a count, or has ended, within timeout_s."""
        return bool(self._poll.poll(timeout_s * 1e3))

    def _read_counts(self) -> None:
        """Read the greeting and all the counts that have come. Never blocks."""
        while not self._end:
            try:
                if not self._rings:
                    if rings := self._receive_greeting():
                        self.attach(rings)
                    continue
                data = self._socket.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self._end = f"the connection with {self.peer} broke: {error.strerror or error}"
                return
            except ValueError as error:
                self._end = f"{self.peer} {error}"
                return
            if not data:
                self._end = f"{self.peer} closed the connection"
                return
            self._apply_counts(self._partial_count + data)

    def _apply_counts(self, data: bytes) -> None:
        whole = len(data) - len(data) % COUNT.size
        for (count,) in COUNT.iter_unpack(data[:whole]):
            self._free -= min(count, 0)
            self._filled += max(count, 0)
        self._partial_count = data[whole:]
        if self._free > self._size or self._filled + self._taken > self._size:
            self._filled = 0
            self._end = f"{self.peer} counted more bytes than its ring holds"

    def _check_stalled(self, moved_s: float) -> None:
        if time.monotonic() - moved_s >= self._silence_s:
            raise PeerSilent(f"{self.peer} has moved no byte for {self._silence_s:g} s in the middle of a frame")
