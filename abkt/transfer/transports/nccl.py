"""NCCL between two processes of one user on one host, each with a GPU of its own. Never run: it needs two GPUs, and there was one at most.

What the tests run is `Gloo`, the same code with torch's other process group in its place, on the host. Two groups a connection, one for
each direction, so that a send never stands before a receive of the same side. A count on the Unix socket says how many bytes the other
side shall receive; what is short travels on the socket itself. Every wait for a peer ends after silence_s, but an abort does not cut it
shorter over gloo, whose waits nothing interrupts. gloo and the store listen on loopback and ask nobody who he is; NCCL does
where NCCL_SOCKET_IFNAME says.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.groups import GroupRings
from abkt.transfer.transports.ring import COUNT, RingConnection
from abkt.transfer.transports.stream_socket import StreamListener
from abkt.transfer.transports.unix import bound, reached, same_user

CHUNK_BYTES = 1 << 20
INLINE_BYTES = 4096  # at most this goes over the socket: a header is not worth a kernel, and last words outlive the groups
GREETING = struct.Struct("<8s4s16sH")  # MAGIC, name of the group, which GPU, port of the store on loopback; 0 in the answer
MAGIC = b"ABKTnccl"


class Nccl:
    """Addresses are paths, of the Unix socket. Raises ValueError, one line, where there is no GPU."""

    kind = "nccl"

    def __init__(self) -> None:
        if not device_of(self.kind):
            raise ValueError("carrier nccl needs a CUDA device for each of its two sides; there is none here")

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> GroupConnection:
        made = GroupConnection(reached(address, silence_s), address, silence_s, self.kind)
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
        self._say(COUNT.pack(count) + rings.unsent())

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


def device_of(kind: str) -> bytes:
    """16 bytes that no other GPU has, of the one in use here; empty if there is none."""
    if kind == "gloo":
        return bytes(16)
    import torch

    if not torch.cuda.is_available():
        return b""
    device: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return bytes(device.uuid.bytes)
