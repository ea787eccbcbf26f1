"""NCCL between two processes of one user on one host, each with a GPU of its own. Never run: it needs two GPUs, and there was one at most.

What the tests run is `Gloo`, the same code with torch's other process group in its place, on the host. Two groups a connection, one for
each direction, so that a send never stands before a receive of the same side. A count on the Unix socket says how many bytes the other
side shall receive; what is short travels on the socket itself. Every wait for a peer ends after silence_s, but an abort does not cut it
shorter over gloo, whose waits nothing interrupts. gloo and the store listen on loopback and ask nobody who he is; NCCL does
where NCCL_SOCKET_IFNAME says.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from abkt.transfer.ring import COUNT, RingConnection
from abkt.transfer.stream_socket import StreamListener
from abkt.transfer.transport import TICK_S, PeerLost, PeerSilent
from abkt.transfer.unix import bound, same_user

RING_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20
INLINE_BYTES = 4096  # at most this goes over the socket: a header is not worth a kernel, and last words outlive the groups
GREETING = struct.Struct("<8s4s16sH")  # MAGIC, name of the group, which GPU, port of the store on loopback; 0 in the answer
MAGIC = b"ABKTnccl"
STEP_S = 20e-6
LINGER_S = 0.5


class Nccl:
    """Addresses are paths, of the Unix socket. Raises ValueError, one line, where there is no GPU."""

    kind = "nccl"

    def __init__(self) -> None:
        if not device_of(self.kind):
            raise ValueError("carrier nccl needs a CUDA device for each of its two sides; there is none here")

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> GroupConnection:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(silence_s)
        try:
            connected.connect(address)
        except OSError as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        made = GroupConnection(connected, address, silence_s, self.kind)
        try:
            made.greet(store=socket.create_server(("127.0.0.1", 0)))
        except (OSError, ValueError) as error:
            made.close()
            raise PeerLost(f"{address} {error}") from None
        return made

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        def made(connected: socket.socket, peer: str) -> GroupConnection:
            return GroupConnection(connected, peer, silence_s, self.kind)

        return StreamListener(bound(address), address, made, address)


class Gloo(Nccl):
    """The stand-in: slower than a Unix socket, and of no other use than the tests."""

    kind = "gloo"


class GroupConnection(RingConnection):
    """The side that connected greets with where the store is; the other answers, and then both make their groups."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float, kind: str) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)
        self._kind = kind
        self._store: socket.socket | None = None  # where it will be reached, if this side has it
        self._came = b""
        self._inline = 0  # bytes that come next on the socket
        self._group_rings: GroupRings | None = None

    def greet(self, store: socket.socket | None = None) -> None:
        """Raises OSError, or ValueError if the peer is another user's."""
        self._store = store
        same_user(self._socket)
        port = store.getsockname()[1] if store else 0
        self._socket.sendall(GREETING.pack(MAGIC, self._kind.encode(), device_of(self._kind), port))

    def _meet(self) -> GroupRings | None:
        if len(self._came) < GREETING.size:
            told = self._socket.recv(GREETING.size - len(self._came), socket.MSG_DONTWAIT)
            if not told:
                raise ValueError("closed the connection")
            self._came += told
            return None
        magic, kind, device, port = GREETING.unpack(self._came)
        if magic != MAGIC or bool(port) == bool(self._store):
            raise ValueError("does not speak this protocol")
        if kind.rstrip(b"\0") != self._kind.encode():
            raise ValueError(f"does not speak {self._kind}")
        if self._kind == "nccl" and device == device_of(self._kind):
            raise ValueError("computes on the same GPU as this side; NCCL needs two")
        if not self._store:
            try:
                self.greet()
            except OSError as error:
                raise ValueError(f"cannot be answered: {error}") from None
        store, self._store = self._store, None
        self._group_rings = GroupRings(self._kind, store or port, self.peer, self._silence_s, self._waits)
        return self._group_rings

    def _tell_put(self, count: int) -> None:
        rings = self._group_rings
        assert rings is not None
        if count > INLINE_BYTES:
            super()._tell_put(count)
            return
        rest = memoryview(COUNT.pack(count) + rings.unsent())
        begun_s = time.monotonic()
        while rest:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._listen()
                if not self._room.poll(min(TICK_S, self._silence_s / 4) * 1e3):
                    self._complain(begun_s)
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None

    def _counted(self, told: bytes) -> None:
        """Counts, those of few bytes with the bytes behind them. Nothing is received that the ring has no room for."""
        rings = self._group_rings
        assert rings is not None
        while told and not self._end:
            if self._inline:
                piece, told = told[: self._inline], told[self._inline :]
                rings.place(piece)
                self._inline -= len(piece)
                self._filled += len(piece)
                continue
            if len(told) < COUNT.size:
                break
            (count,), told = COUNT.unpack_from(told), told[COUNT.size :]
            if count < 0:
                self._free -= count
                rings.acknowledged(-count)
            elif count <= INLINE_BYTES:
                self._inline = count
            elif self._filled + self._taken + count <= self._size:
                try:
                    rings.expect(count)
                    self._filled += count
                except PeerLost as error:
                    self._end = str(error)  # once what came before it has been read
            else:
                self._free = self._size + 1  # whatever it was: the end of it
            if self._free > self._size or self._filled + self._taken + self._inline > self._size:
                self._filled = self._inline = 0
                self._end = f"{self.peer} counted more bytes than its ring holds"
        self._rest = told

    def _waits(self, begun_s: float) -> None:
        """Called while this side waits for what a group receives. Raises PeerLost or PeerSilent."""
        if self._comes(0.0):
            self._listen()
        if self._end:
            raise PeerLost(self._end)
        self._complain(begun_s)

    def close(self) -> None:
        super().close()
        if self._store:
            self._store.close()


class GroupRings:
    """Both groups of one side. store, waits: see `groups` and GroupConnection._waits. Raises ValueError, one line."""

    size = RING_BYTES

    def __init__(self, kind: str, store: socket.socket | int, peer: str, silence_s: float, waits: Callable[[float], None]) -> None:
        import torch

        self._nccl, self._peer, self._silence_s, self._waits = kind == "nccl", peer, silence_s, waits
        self._rank = int(isinstance(store, int))
        self._host = [torch.zeros(RING_BYTES, dtype=torch.uint8, pin_memory=self._nccl) for _ in range(2)]  # out, in
        self._memory = [host.cuda() for host in self._host] if self._nccl else self._host
        self._out, self._in = (_view(host) for host in self._host)
        self._spans: list[tuple[int, int]] = []  # put and not yet sent: of ring bytes, from and to
        self._sending: deque[tuple[int, Any]] = deque()  # up to which byte, and the work: it holds the memory until the peer has taken it
        self._coming: deque[tuple[int, int, int, Any]] = deque()  # from which byte on, where in the ring from and to, and the work
        self._sent = self._acknowledged = self._told = self._taken = 0  # bytes, from the beginning
        try:
            self._groups = groups(kind, store, self._rank, silence_s)
            for way in (0, 1):  # NCCL meets at the first byte, which must not wait for a count
                (self._send if way == self._rank else self._receive)(0, 1)
            self._finish(*self._coming.popleft()[1:])
        except RuntimeError as error:
            raise ValueError(f"could not be met by {kind}: {brief(error)}") from None
        except (PeerLost, PeerSilent) as error:
            raise ValueError(f"could not be met by {kind}: {error}") from None
        self._told = 0

    def put(self, at: int, piece: memoryview) -> None:
        stop = at + len(piece)
        self._out[at:stop] = piece
        if self._spans and self._spans[-1][1] == at:
            self._spans[-1] = (self._spans[-1][0], stop)
        else:
            self._spans.append((at, stop))

    def unsent(self) -> bytes:
        """What has been put since the last time, which goes another way."""
        said = b"".join(self._out[start:stop] for start, stop in self._spans)
        self._sent += len(said)
        self._spans.clear()
        return said

    def written(self) -> None:
        """Under way: the peer is told next how much to receive, and the memory stays until it has."""
        try:
            for start, stop in self._spans:
                self._sent += stop - start
                self._send(start, stop)
        except RuntimeError as error:
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None
        self._spans.clear()

    def acknowledged(self, count: int) -> None:
        self._acknowledged += count
        while self._sending and self._sending[0][0] <= self._acknowledged:
            self._sending.popleft()

    def expect(self, count: int) -> None:
        """The peer sends so many bytes, in one piece or, where the ring ends, in two. Raises PeerLost."""
        at = self._told % RING_BYTES
        first = min(count, RING_BYTES - at)
        try:
            self._receive(at, at + first)
            if first < count:
                self._receive(0, count - first)
        except RuntimeError as error:
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None

    def place(self, piece: bytes) -> None:
        """Bytes that came another way."""
        at = self._told % RING_BYTES
        first = min(len(piece), RING_BYTES - at)
        self._in[at : at + first] = piece[:first]
        self._in[: len(piece) - first] = piece[first:]
        self._told += len(piece)

    def take(self, at: int, piece: memoryview) -> None:
        while self._coming and self._coming[0][0] < self._taken + len(piece):
            self._finish(*self._coming.popleft()[1:])
        piece[:] = self._in[at : at + len(piece)]
        self._taken += len(piece)

    def read(self) -> None:
        pass

    def close(self) -> None:
        """What is under way ends with the groups; what the peer was told of gets LINGER_S, for last words stand behind it."""
        until_s = time.monotonic() + LINGER_S
        with suppress(RuntimeError):  # it has left, or does not take it
            for _, work in self._sending:
                if not self._nccl:
                    work.wait(timedelta(seconds=max(1e-3, until_s - time.monotonic())))
                while self._nccl and not work.is_completed() and time.monotonic() < until_s:
                    time.sleep(STEP_S)
        if self._nccl:
            for group in self._groups:
                group.abort()
        self._sending.clear()
        self._coming.clear()
        self._groups.clear()
        self._out.release()
        self._in.release()
        self._host, self._memory = [], []

    def _send(self, start: int, stop: int) -> None:
        if self._nccl:
            self._memory[0][start:stop].copy_(self._host[0][start:stop], non_blocking=True)
        self._sending.append((self._sent, self._groups[self._rank].send([self._memory[0][start:stop]], 1 - self._rank, 0)))

    def _receive(self, start: int, stop: int) -> None:
        work = self._groups[1 - self._rank].recv([self._memory[1][start:stop]], 1 - self._rank, 0)
        self._coming.append((self._told, start, stop, work))
        self._told += stop - start

    def _finish(self, start: int, stop: int, work: Any) -> None:
        """Wait until it is there. gloo's work knows that it is done only by waiting, and a wait that timed out ends the group."""
        begun_s = time.monotonic()
        try:
            if not self._nccl:
                work.wait(timedelta(seconds=self._silence_s))
                return
            while not work.is_completed():
                self._waits(begun_s)
                time.sleep(STEP_S)
            work.wait()
        except RuntimeError as error:
            if "Timed out" in str(error):
                raise PeerSilent(f"{self._peer} has moved no byte for {self._silence_s:g} s in the middle of a frame") from None
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None
        self._host[1][start:stop].copy_(self._memory[1][start:stop])


def _view(host: Any) -> memoryview:
    return memoryview(host.numpy())


def groups(kind: str, at: socket.socket | int, rank: int, silence_s: float) -> list[Any]:
    """One for what rank 0 sends, one for what rank 1 sends; both sides call this at once. Raises RuntimeError if they do not meet.

    at: where the store listens, if this side has it, and is handed over; else its port.
    """
    import torch

    distributed: Any = torch.distributed
    timeout = timedelta(seconds=silence_s)
    port, listening = (at, None) if isinstance(at, int) else (at.getsockname()[1], at.detach())
    store = distributed.TCPStore("127.0.0.1", port, None, listening is not None, timeout, False, master_listen_fd=listening)
    if kind == "gloo":
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        made = distributed.ProcessGroupGloo
    else:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # its watchdog would end the process with the peer
        options = distributed.ProcessGroupNCCL.Options()
        made = distributed.ProcessGroupNCCL
    options._timeout = timeout
    return [made(distributed.PrefixStore(str(way), store), rank, 2, options) for way in (0, 1)]


def device_of(kind: str) -> bytes:
    """16 bytes that no other GPU has, of the one in use here; empty if there is none."""
    if kind == "gloo":
        return bytes(16)
    import torch

    if not torch.cuda.is_available():
        return b""
    device: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return bytes(device.uuid.bytes)


def brief(error: RuntimeError) -> str:
    """What a library says first, without the place in its source, its advice and its stack."""
    return re.sub(r"^\[\S*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
