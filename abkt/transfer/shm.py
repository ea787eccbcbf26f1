"""Shared memory between processes of one host: a ring for each direction, and a Unix socket that carries nothing but counts.

A count says how many bytes were put into the ring, or taken out of it. So the kernel orders what one side writes before what the other
reads, a poll finds new bytes, and a peer that dies closes its socket. The memory has no name: it goes when both sides are gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from abkt.transfer.frame import Buffer
from abkt.transfer.stream_socket import StreamListener
from abkt.transfer.transport import TICK_S, PeerLost, PeerSilent, Progress
from abkt.transfer.unix import bound

RING_BYTES = 1 << 20
CHUNK_BYTES = 128 << 10  # told at once, so that the other side copies meanwhile
HELD_BYTES = RING_BYTES // 4  # taken out before it is told, if nothing is waited for
GREETING = b"ABKT shm"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # memory that shrinks under a reader would kill it
_COUNT = struct.Struct("<i")  # put in, or taken out if negative


class Shm:
    """Addresses are paths, of the Unix socket. The file goes away when the listener closes."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> ShmConnection:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(silence_s)
        memory = os.memfd_create("abkt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, 2 * RING_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            connected.connect(address)
            socket.send_fds(connected, [GREETING], [memory])
            made = ShmConnection(connected, address, silence_s)
            made.attach(memory, first=True)
        except OSError as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        finally:
            os.close(memory)
        return made

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(bound(address), address, lambda connected, peer: ShmConnection(connected, peer, silence_s), address)


class ShmConnection:
    """The side that was connected to is given the memory with the first bytes of the socket, whenever they come."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        self.peer = peer
        self._socket = connected
        self._silence_s = silence_s
        connected.setblocking(True)
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._room = select.poll()
        self._room.register(connected, select.POLLIN | select.POLLOUT)
        self._map: mmap.mmap | None = None
        self._out = self._in = memoryview(b"")
        self._head = self._tail = 0  # where the next byte is put, and taken
        self._free = RING_BYTES
        self._filled = self._taken = 0  # to be taken; taken and not told
        self._rest = b""  # of a count that has not come whole
        self._end = ""  # why no count will come any more

    def attach(self, memory: int, first: bool) -> None:
        """Use this shared memory; raises OSError or ValueError if it is not what a peer may give."""
        if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & SEALS != SEALS or os.fstat(memory).st_size != 2 * RING_BYTES:
            raise ValueError("it is of another size, or could be changed in size")
        self._map = mmap.mmap(memory, 2 * RING_BYTES)
        view = memoryview(self._map)
        rings = [view[:RING_BYTES], view[RING_BYTES:]]
        view.release()
        self._out, self._in = rings if first else rings[::-1]

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        calls = put = 0
        moved_s = time.monotonic()
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                if put >= CHUNK_BYTES or (put and not self._free):
                    self._tell(put)
                    calls, put = calls + 1, 0
                    waiting()
                if not self._free:
                    if not self._wait():
                        self._complain(moved_s)
                    waiting()
                    continue
                size = min(len(rest), self._free, CHUNK_BYTES - put, RING_BYTES - self._head)
                self._out[self._head : self._head + size] = rest[:size]
                self._head = (self._head + size) % RING_BYTES
                self._free -= size
                put += size
                rest = rest[size:]
                moved_s = time.monotonic()
        if put:
            self._tell(put)
            calls += 1
        return calls

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        progress = Progress(self.peer, self._silence_s)
        for buffer in buffers:
            rest = buffer
            while rest:
                if not self._filled:
                    self._tell_taken()
                    self._wait()
                    progress.came(0)
                    waiting()
                    continue
                size = min(len(rest), self._filled, HELD_BYTES, RING_BYTES - self._tail)
                rest[:size] = self._in[self._tail : self._tail + size]
                self._tail = (self._tail + size) % RING_BYTES
                self._filled -= size
                self._taken += size
                rest = rest[size:]
                progress.came(size)
                if self._taken >= HELD_BYTES:
                    self._tell_taken()
                    self._listen()
        waiting()

    def readable(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while not (self._filled or self._end):
            if not self._poll.poll(max(0.0, until_s - time.monotonic()) * 1e3):
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
        self._out.release()
        self._in.release()
        if self._map:
            self._map.close()

    def _tell_taken(self) -> None:
        """If there is room for a count; a peer that needs it listens. Whether it is still there shows when the ring is empty."""
        if self._taken:
            with suppress(OSError):
                self._socket.send(_COUNT.pack(-self._taken), socket.MSG_DONTWAIT)
                self._taken = 0

    def _tell(self, count: int) -> None:
        """Both sides may be telling and not listening: so this one listens as soon as the socket is full."""
        begun_s = time.monotonic()
        while True:
            if not self._map:
                if not self._wait():
                    self._complain(begun_s)
                continue
            try:
                self._socket.send(_COUNT.pack(count), socket.MSG_DONTWAIT)
                return
            except BlockingIOError:
                self._listen()
                if not self._room.poll(min(TICK_S, self._silence_s / 4) * 1e3):
                    self._complain(begun_s)
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None

    def _wait(self) -> bool:
        """For a count, one tick at most: whether one has come. Raises PeerLost if none will."""
        if self._end:
            raise PeerLost(self._end)
        came = bool(self._poll.poll(min(TICK_S, self._silence_s / 4) * 1e3))
        if came:
            self._listen()
        return came

    def _listen(self) -> None:
        """Take in all the counts that have come."""
        while not self._end:
            try:
                if not self._map:
                    self._greeted()
                    continue
                told = self._socket.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self._end = f"the connection with {self.peer} broke: {error.strerror or error}"
                return
            if not told:
                self._end = f"{self.peer} closed the connection"
                return
            told = self._rest + told
            whole = len(told) - len(told) % _COUNT.size
            for (count,) in _COUNT.iter_unpack(told[:whole]):
                self._free -= min(count, 0)
                self._filled += max(count, 0)
            self._rest = told[whole:]
            if self._free > RING_BYTES or self._filled + self._taken > RING_BYTES:
                self._filled = 0
                self._end = f"{self.peer} counted more bytes than its ring holds"

    def _greeted(self) -> None:
        greeting, memories, _, _ = socket.recv_fds(self._socket, len(GREETING), 1, socket.MSG_DONTWAIT)
        try:
            if greeting != GREETING or len(memories) != 1:
                self._end = f"{self.peer} closed the connection" if not greeting else f"{self.peer} does not speak this protocol"
                return
            self.attach(memories[0], first=False)
        except (ValueError, OSError) as error:
            self._end = f"{self.peer} gave memory that cannot be used: {error}"
        finally:
            for memory in memories:
                os.close(memory)

    def _complain(self, moved_s: float) -> None:
        if time.monotonic() - moved_s >= self._silence_s:
            raise PeerSilent(f"{self.peer} has moved no byte for {self._silence_s:g} s in the middle of a frame")
