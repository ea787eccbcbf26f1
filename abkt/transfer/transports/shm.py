"""Shared memory between two processes of one host, with a Unix socket for the counts.

The memory has no name in the file system, so it is freed when both processes have closed it or are dead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket

from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.ring import RingConnection
from abkt.transfer.transports.stream_socket import StreamListener
from abkt.transfer.transports.unix import connect_unix, listen_unix

RING_BYTES = 1 << 20
CHUNK_BYTES = 128 << 10
GREETING = b"ABKT shm"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # a process that reads memory which has shrunk is killed


class Shm:
    """Rings in shared memory. Addresses are paths of a Unix socket; the file is removed when the listener closes."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> ShmConnection:
        connected = connect_unix(address, silence_s)
        memory = os.memfd_create("abkt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, 2 * RING_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            socket.send_fds(connected, [GREETING], [memory])
            made = ShmConnection(connected, address, silence_s)
            made.attach(SharedRings(memory, first=True))
        except OSError as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        finally:
            os.close(memory)
        return made

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(listen_unix(address), address, lambda connected, peer: ShmConnection(connected, peer, silence_s), address)


class SharedRings:
    """Two rings in one memfd. first: this side made the memory. Raises OSError or ValueError if the memory of a peer cannot be used."""

    size = RING_BYTES

    def __init__(self, memory: int, first: bool) -> None:
        if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & SEALS != SEALS or os.fstat(memory).st_size != 2 * RING_BYTES:
            raise ValueError("gave memory that is of another size, or could be changed in size")
        self._map = mmap.mmap(memory, 2 * RING_BYTES)
        with memoryview(self._map) as view:
            rings = [view[:RING_BYTES], view[RING_BYTES:]]
        self._out, self._in = rings if first else rings[::-1]

    def put(self, at: int, piece: memoryview) -> None:
        self._out[at : at + len(piece)] = piece

    def wait_put(self) -> None:
        pass

    def take(self, at: int, piece: memoryview) -> None:
        piece[:] = self._in[at : at + len(piece)]

    def wait_taken(self) -> None:
        pass

    def close(self) -> None:
        self._out.release()
        self._in.release()
        self._map.close()


class ShmConnection(RingConnection):
    """The side that connected makes the memory, and passes it to the other side with the first bytes on the socket."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)

    def _receive_greeting(self) -> SharedRings:
        greeting, memories, _, _ = socket.recv_fds(self._socket, len(GREETING), 1, socket.MSG_DONTWAIT)
        try:
            if not greeting:
                raise ValueError("closed the connection")
            if greeting != GREETING or len(memories) != 1:
                raise ValueError("does not speak this protocol")
            return SharedRings(memories[0], first=False)
        except OSError as error:
            raise ValueError(f"gave memory that cannot be used: {error}") from None
        finally:
            for memory in memories:
                os.close(memory)
