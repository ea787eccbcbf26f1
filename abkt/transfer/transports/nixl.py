"""NIXL over UCX between processes of one user on one host: each side writes into a ring of memory that the other one registered.

A NIXL agent takes a peer's word for where to write: UCX's own ports ask nobody who he is, and metadata that is damaged has been seen to end
the process that reads it. So the sides meet on a Unix socket, another user's process is refused there, and UCX opens no port: it copies
straight into the peer's memory (CMA), or through shared memory where the system forbids that. Needs `pip install abkt[nixl]`.

Not here: RDMA and TCP between hosts, and memory of a GPU.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.ring import COUNT, RingConnection, Spans
from abkt.transfer.transports.stream_socket import StreamListener
from abkt.transfer.transports.unix import bound, reached, same_user

RING_BYTES = 2 << 20
CHUNK_BYTES = 512 << 10
GREETING = struct.Struct("<8sIQ")  # MAGIC, bytes of the metadata that follow, address of the ring that the other side writes into
MAGIC = b"ABKTnixl"
METADATA_CAP_BYTES = 16 << 10
LANES = {"UCX_TLS": "posix,cma,self"}  # for which UCX opens no port
HELP_S = 20e-6  # between two steps of a write that this side helps with, or waits for

_environment = threading.Lock()


class Nixl:
    """Addresses are paths, of the Unix socket. Raises ValueError, one line, where NIXL is not installed."""

    def __init__(self) -> None:
        library()

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> NixlConnection:
        made = NixlConnection(reached(address, silence_s), address, silence_s)
        try:
            made.greet()
        except (OSError, ValueError) as error:
            made.close()
            raise PeerLost(f"{address} {error}") from None
        return made

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(bound(address), address, lambda connected, peer: NixlConnection(connected, peer, silence_s), address)


class NixlConnection(RingConnection):
    """The side that connected greets first. A count of 0 asks the other side to help: a write of this one does not get on alone."""

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)
        self._memory: RegisteredRings | None = None
        self._came = b""
        self._helping = False

    def greet(self) -> None:
        """Raises OSError, or ValueError if the peer is another user's."""
        same_user(self._socket)
        self._memory = RegisteredRings(self.peer, self._write_waits)
        self._socket.sendall(self._memory.greeting())

    def _meet(self) -> RegisteredRings | None:
        whole = GREETING.size
        if len(self._came) >= whole:
            magic, size, address = GREETING.unpack(self._came[:whole])
            if magic != MAGIC or not 0 < size <= METADATA_CAP_BYTES:
                raise ValueError("does not speak this protocol")
            whole += size
        if len(self._came) < whole:
            told = self._socket.recv(whole - len(self._came), socket.MSG_DONTWAIT)
            if not told:
                raise ValueError("closed the connection")
            self._came += told
            return None
        if not self._memory:
            try:
                self.greet()
            except OSError as error:
                raise ValueError(f"cannot be answered: {error}") from None
        assert self._memory is not None
        self._memory.join(self._came[GREETING.size :], address)
        return self._memory

    def _counted(self, told: bytes) -> None:
        for (count,) in COUNT.iter_unpack(told[: len(told) - len(told) % COUNT.size]):
            self._helping = count == 0
        super()._counted(told)

    def _comes(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while self._helping and self._memory:
            if super()._comes(0.0):
                return True
            if time.monotonic() >= until_s:
                return False
            self._memory.help()
            time.sleep(HELP_S)
        return super()._comes(max(0.0, until_s - time.monotonic()))

    def _write_waits(self, begun_s: float, asked: bool) -> bool:
        """Called while a write of this side is under way; returns whether the peer has been asked to help. Raises PeerLost, PeerSilent."""
        if not asked:
            try:
                asked = bool(self._socket.send(COUNT.pack(0), socket.MSG_DONTWAIT))
            except BlockingIOError:
                pass  # it has much to read, so it is not waiting
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None
        if super()._comes(0.0):
            self._listen()
        if self._end:
            raise PeerLost(self._end)
        self._complain(begun_s)
        return asked

    def close(self) -> None:
        super().close()
        if self._memory:
            self._memory.close()


class RegisteredRings:
    """One agent: the ring that the peer writes into, and memory from which this side writes into the peer's. Raises ValueError, one line.

    An agent each, not one a process: what is left of a broken connection ends with it, and can never write into the ring of another. It
    has no thread of its own, which would spin, and takes 40 ms. waits: see NixlConnection._write_waits.
    """

    size = RING_BYTES

    def __init__(self, peer: str, waits: Callable[[float, bool], bool]) -> None:
        api = library()
        self._peer, self._waits = peer, waits
        self._map = mmap.mmap(-1, 2 * RING_BYTES)
        with memoryview(self._map) as view:
            self._in, self._out = view[:RING_BYTES], view[RING_BYTES:]
        start = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(start)
        del start  # or the map could not be closed
        self._spans = Spans()
        self._write: Any = None
        self._agent_there, self._address_there = "", 0
        try:
            with _lanes():
                self._agent: Any = api.nixl_agent(f"abkt-{secrets.token_hex(8)}", api.nixl_agent_config(False, backends=[]))
                self._agent.create_backend("UCX", {"ucx_error_handling_mode": "none"})  # the socket says when the peer is gone
            regions = [(self._address + start, RING_BYTES, 0, "") for start in (0, RING_BYTES)]
            inbound = self._agent.register_memory(regions[:1], "DRAM")
            self._agent.register_memory(regions[1:], "DRAM")
            self._metadata: bytes = self._agent.get_partial_agent_metadata(inbound, True, ["UCX"])
        except errors() as error:
            raise ValueError(f"cannot be reached: NIXL of this side failed with {error}") from None

    def greeting(self) -> bytes:
        return GREETING.pack(MAGIC, len(self._metadata), self._address) + self._metadata

    def join(self, metadata: bytes, address: int) -> None:
        """metadata, address: what the peer's greeting says."""
        try:
            self._agent_there = self._agent.add_remote_agent(metadata)
        except errors() as error:
            raise ValueError(f"gave metadata that cannot be used: {error}") from None
        self._address_there = address

    def put(self, at: int, piece: memoryview) -> None:
        stop = at + len(piece)
        self._out[at:stop] = piece
        self._spans.add(at, stop)

    def written(self) -> None:
        asked, begun_s = False, time.monotonic()
        try:
            ours = [(self._address + RING_BYTES + start, stop - start, 0) for start, stop in self._spans]
            theirs = [(self._address_there + start, stop - start, 0) for start, stop in self._spans]
            local, remote = self._agent.get_xfer_descs(ours, "DRAM"), self._agent.get_xfer_descs(theirs, "DRAM")
            self._write = self._agent.initialize_xfer("WRITE", local, remote, self._agent_there)
            state = self._agent.transfer(self._write)
            while state == "PROC":
                asked = self._waits(begun_s, asked)
                time.sleep(HELP_S)
                state = self._agent.check_xfer_state(self._write)
            self._write.release()
        except errors() as error:
            raise PeerLost(f"the connection with {self._peer} broke: {error}") from None
        if state != "DONE":
            raise PeerLost(f"the connection with {self._peer} broke: a write failed")
        self._write = None
        self._spans.clear()

    def take(self, at: int, piece: memoryview) -> None:
        piece[:] = self._in[at : at + len(piece)]

    def read(self) -> None:
        pass

    def help(self) -> None:
        """One step of what a peer writes, where the system does not do it alone."""
        self._agent.get_new_notifs()

    def close(self) -> None:
        """The agent goes first: it gives up a write that is under way, and then nothing touches the memory any more."""
        self._write = self._agent = None
        self._in.release()
        self._out.release()
        self._map.close()


@cache
def library() -> ModuleType:
    """NIXL's Python interface, quiet: it would log each agent to stdout. Raises ValueError, one line, if it is not there."""
    raising = logging.raiseExceptions
    if quiet := "NIXL_LOG_LEVEL" not in os.environ:
        os.environ["NIXL_LOG_LEVEL"] = "FATAL"  # what fails is told as an error; the library would also write it to stderr
    try:
        from nixl import _api

        if quiet:
            logging.getLogger("nixl").setLevel(logging.CRITICAL)  # as it does itself, if it had not been imported before
    except ImportError as error:
        raise ValueError(f"transport nixl needs NIXL ({error}); pip install 'abkt[nixl]'") from None
    finally:
        logging.raiseExceptions = raising  # which it changes
    return _api  # type: ignore[no-any-return]


@cache
def errors() -> tuple[type[Exception], ...]:
    """All that NIXL raises. They have no base of their own."""
    from nixl import _bindings

    return tuple(getattr(_bindings, name) for name in dir(_bindings) if name.startswith("nixl") and name.endswith("Error"))


@contextmanager
def _lanes() -> Iterator[None]:
    """UCX reads these from the environment when an agent makes its backend, and other users of UCX in this process have their own."""
    with _environment:
        before = {name: os.environ.get(name) for name in LANES}
        os.environ.update(LANES)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
