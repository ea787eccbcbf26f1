"""Bytes through rings of memory that both sides reach, one for each direction, and a socket that carries nothing but counts.

A count says how many bytes were put into a ring, or taken out of it. So the kernel orders what one side writes before what the other
reads, a poll finds new bytes, and a peer that dies closes its socket. What the memory is, and how the sides meet, is a backend's.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from abkt.transfer.protocol.frame import DATA_CAP_BYTES, Buffer
from abkt.transfer.transport import TICK_S, PeerLost, PeerSilent, TransportProgress

COUNT = struct.Struct("<i")  # put in, or taken out if negative


class Rings(Protocol):
    """The memory of one side of a connection. size: bytes of each ring. A piece never wraps around the end of its ring."""

    size: int

    def put(self, at: int, piece: memoryview) -> None:
        """Write a piece at this byte of the ring to the peer; it may be under way until `written`. Raises PeerLost."""
        ...

    def written(self) -> None:
        """Wait until all that was put is where the peer sees it. Raises PeerLost or PeerSilent."""
        ...

    def take(self, at: int, piece: memoryview) -> None:
        """Read a piece from this byte of the ring of the peer; it may be under way until `read`."""
        ...

    def read(self) -> None:
        """Wait until all that was taken has left the ring."""
        ...

    def close(self) -> None: ...


class Spans:
    """What was put into a ring and has not left: from which byte to which, in its order; adjacent ones as one."""

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
    """One side. chunk_bytes: told at once, so that the other side copies meanwhile. A backend says how the sides meet."""

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
        self._room = select.poll()
        self._room.register(connected, select.POLLIN | select.POLLOUT)
        self._rings: Rings | None = None
        self._size = self._free = 0
        self._head = self._tail = 0  # where the next byte is put, and taken
        self._filled = self._taken = 0  # to be taken; taken and not told
        self._told_s = 0.0  # when it was told last what was taken
        self._rest = b""  # of a count that has not come whole
        self._end = ""  # why no count will come any more

    def _meet(self) -> Rings | None:
        """What of the peer's greeting has come: the rings once it is whole, else None. Called when the socket has bytes, and never blocks.

        Raises BlockingIOError if nothing has come, ValueError if it is not what a peer may say, PeerLost if it has left.
        """
        raise NotImplementedError

    def attach(self, rings: Rings) -> None:
        self._rings, self._size, self._free = rings, rings.size, rings.size

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        calls = put = 0
        moved_s = time.monotonic()
        for buffer in buffers:
            rest = self._view(buffer)
            while len(rest):
                if put >= self._chunk_bytes or (put and not self._free):
                    self._tell_put(put)
                    calls, put = calls + 1, 0
                    waiting()
                if not (self._rings and self._free):
                    if not self._wait():
                        self._complain(moved_s)
                    waiting()
                    continue
                size = min(len(rest), self._free, self._chunk_bytes - put, self._size - self._head)
                self._rings.put(self._head, rest[:size])
                self._head = (self._head + size) % self._size
                self._free -= size
                put += size
                rest = rest[size:]
                moved_s = time.monotonic()
        if put:
            self._tell_put(put)
            calls += 1
        return calls

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        progress = TransportProgress(self.peer, self._silence_s)
        for buffer in buffers:
            rest = buffer
            while len(rest):
                if not (self._rings and self._filled):
                    self._tell_taken()
                    self._wait()
                    progress.came(0)
                    waiting()
                    continue
                size = min(len(rest), self._filled, self._size // 4, self._size - self._tail)
                self._rings.take(self._tail, rest[:size])
                self._tail = (self._tail + size) % self._size
                self._filled -= size
                self._taken += size
                rest = rest[size:]
                progress.came(size)
                if self._taken >= self._size // 4:
                    self._tell_taken()
                    self._listen()
        if self._rings:
            self._rings.read()
        if self._taken and time.monotonic() - self._told_s >= TICK_S:  # a sign of life, from one who takes little
            self._tell_taken()
        waiting()

    def _view(self, buffer: Buffer) -> memoryview:
        """What of a buffer is cut and put. A backend whose rings take other memory than the host's says here how."""
        return memoryview(buffer)

    def readable(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while not (self._filled or self._end):
            if not self._comes(max(0.0, until_s - time.monotonic())):
                return False
            self._listen()
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

    def _tell_put(self, count: int) -> None:
        assert self._rings is not None
        self._rings.written()
        self._say(COUNT.pack(count))

    def _say(self, data: bytes) -> None:
        """Both sides may be telling and not listening: so this one listens as soon as the socket is full."""
        rest, begun_s = memoryview(data), time.monotonic()
        while rest:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._listen()
                if not self._room.poll(min(TICK_S, self._silence_s / 4) * 1e3):
                    self._complain(begun_s)
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None

    def _tell_taken(self) -> None:
        """If there is room for a count; a peer that needs it listens. Whether it is still there shows when the ring is empty."""
        if self._taken and self._rings:
            self._rings.read()
            with suppress(OSError):
                self._socket.send(COUNT.pack(-self._taken), socket.MSG_DONTWAIT)
                self._taken = 0
                self._told_s = time.monotonic()

    def _wait(self) -> bool:
        """For a count, one tick at most: whether one has come. Raises PeerLost if none will."""
        if self._end:
            raise PeerLost(self._end)
        came = self._comes(min(TICK_S, self._silence_s / 4))
        if came:
            self._listen()
        return came

    def _comes(self, timeout_s: float) -> bool:
        """Whether the socket has a count, or its end, within timeout_s."""
        return bool(self._poll.poll(timeout_s * 1e3))

    def _listen(self) -> None:
        """Take in all the counts that have come."""
        while not self._end:
            try:
                if not self._rings:
                    if rings := self._meet():
                        self.attach(rings)
                    continue
                told = self._socket.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self._end = f"the connection with {self.peer} broke: {error.strerror or error}"
                return
            except ValueError as error:
                self._end = f"{self.peer} {error}"
                return
            if not told:
                self._end = f"{self.peer} closed the connection"
                return
            self._counted(self._rest + told)

    def _counted(self, told: bytes) -> None:
        whole = len(told) - len(told) % COUNT.size
        for (count,) in COUNT.iter_unpack(told[:whole]):
            self._free -= min(count, 0)
            self._filled += max(count, 0)
        self._rest = told[whole:]
        if self._free > self._size or self._filled + self._taken > self._size:
            self._filled = 0
            self._end = f"{self.peer} counted more bytes than its ring holds"

    def _complain(self, moved_s: float) -> None:
        if time.monotonic() - moved_s >= self._silence_s:
            raise PeerSilent(f"{self.peer} has moved no byte for {self._silence_s:g} s in the middle of a frame")
