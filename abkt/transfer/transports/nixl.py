"""NIXL over UCX between processes of one user on one host: each side writes into a ring of memory that the other side has registered.

NIXL agents do not authenticate each other: UCX's own ports accept anyone, and damaged metadata has been seen to crash the process that
reads it. So the two sides connect through a Unix socket, processes of other users are refused there, and UCX opens no port: it copies
directly into the peer's memory (CMA), or through shared memory where the system forbids that. Needs `pip install abkt[nixl]`.

Not supported: RDMA and TCP between hosts, and GPU memory.
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
from abkt.transfer.transports.unix import check_same_user, connect_unix, listen_unix

RING_BYTES = 2 << 20
CHUNK_BYTES = 512 << 10
GREETING = struct.Struct("<8sIQ")  # MAGIC, size of the metadata that follow, address of the ring that the peer writes into
MAGIC = b"ABKTnixl"
METADATA_CAP_BYTES = 16 << 10
UCX_SETTINGS = {"UCX_TLS": "posix,cma,self"}  # transports of UCX that open no port
PROGRESS_S = 20e-6  # time between two progress calls during a write

_environment_lock = threading.Lock()


class Nixl:
    """NIXL over UCX. Addresses are paths of a Unix socket. Raises ValueError, one line, if NIXL is not installed."""

    def __init__(self) -> None:
        library()

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> NixlConnection:
        made = NixlConnection(connect_unix(address, silence_s), address, silence_s)
        try:
            made.send_greeting()
        except (OSError, ValueError) as error:
            made.close()
            raise PeerLost(f"{address} {error}") from None
        return made

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(listen_unix(address), address, lambda connected, peer: NixlConnection(connected, peer, silence_s), address)


class NixlConnection(RingConnection):
    """A connection whose rings are written with NIXL. The side that connected sends its greeting first.

    UCX may need the target process to make progress calls for a write. The writing side asks for them with a count of 0.
    """

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        super().__init__(connected, peer, silence_s, CHUNK_BYTES)
        self._memory: RegisteredRings | None = None
        self._greeting = b""  # the bytes of the peer's greeting that have come
        self._progress_wanted = False  # the peer has asked for progress calls

    def send_greeting(self) -> None:
        """Make this side's rings and send what the peer needs to write into them. Raises OSError, or ValueError for another user's peer."""
        check_same_user(self._socket)
        self._memory = RegisteredRings(self.peer, self._write_pending)
        self._socket.sendall(self._memory.greeting())

    def _receive_greeting(self) -> RegisteredRings | None:
        whole = GREETING.size
        if len(self._greeting) >= whole:
            magic, size, address = GREETING.unpack(self._greeting[:whole])
            if magic != MAGIC or not 0 < size <= METADATA_CAP_BYTES:
                raise ValueError("does not speak this protocol")
            whole += size
        if len(self._greeting) < whole:
            data = self._socket.recv(whole - len(self._greeting), socket.MSG_DONTWAIT)
            if not data:
                raise ValueError("closed the connection")
            self._greeting += data
            return None
        if not self._memory:
            try:
                self.send_greeting()
            except OSError as error:
                raise ValueError(f"cannot be answered: {error}") from None
        assert self._memory is not None
        self._memory.join(self._greeting[GREETING.size :], address)
        return self._memory

    def _apply_counts(self, data: bytes) -> None:
        for (count,) in COUNT.iter_unpack(data[: len(data) - len(data) % COUNT.size]):
            self._progress_wanted = count == 0
        super()._apply_counts(data)

    def _socket_readable(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while self._progress_wanted and self._memory:
            if super()._socket_readable(0.0):
                return True
            if time.monotonic() >= until_s:
                return False
            self._memory.progress()
            time.sleep(PROGRESS_S)
        return super()._socket_readable(max(0.0, until_s - time.monotonic()))

    def _write_pending(self, begun_s: float, asked: bool) -> bool:
        """Called while a write of this side is pending. asked: whether the peer has been asked for progress calls; the new value is
        returned.

        Raises PeerLost, PeerSilent.
        """
        if not asked:
            try:
                asked = bool(self._socket.send(COUNT.pack(0), socket.MSG_DONTWAIT))
            except BlockingIOError:
                pass  # the peer has counts to read, so it is not blocked; ask again later
            except OSError as error:
                raise PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}") from None
        if super()._socket_readable(0.0):
            self._read_counts()
        if self._end:
            raise PeerLost(self._end)
        self._check_stalled(begun_s)
        return asked

    def close(self) -> None:
        super().close()
        if self._memory:
            self._memory.close()


class RegisteredRings:
    """The rings of one connection, registered with a NIXL agent of its own. Raises ValueError, one line.

    One ring is written by the peer; from the other this side writes into the peer's memory. Each connection has its own agent, so that a
    pending write of a broken connection ends with the agent and cannot reach the ring of another connection. Making an agent takes 40 ms.
    It has no progress thread, which would spin. write_pending: see NixlConnection.
    """

    size = RING_BYTES

    def __init__(self, peer: str, write_pending: Callable[[float, bool], bool]) -> None:
        api = library()
        self._peer, self._write_pending = peer, write_pending
        self._map = mmap.mmap(-1, 2 * RING_BYTES)
        with memoryview(self._map) as view:
            self._in, self._out = view[:RING_BYTES], view[RING_BYTES:]
        start = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(start)
        del start  # a reference would keep the map from being closed
        self._spans = Spans()
        self._write: Any = None
        self._peer_agent, self._peer_address = "", 0
        try:
            with _ucx_settings():
                self._agent: Any = api.nixl_agent(f"abkt-{secrets.token_hex(8)}", api.nixl_agent_config(False, backends=[]))
                self._agent.create_backend("UCX", {"ucx_error_handling_mode": "none"})  # the socket shows when the peer is gone
            regions = [(self._address + start, RING_BYTES, 0, "") for start in (0, RING_BYTES)]
            inbound = self._agent.register_memory(regions[:1], "DRAM")
            self._agent.register_memory(regions[1:], "DRAM")
            self._metadata: bytes = self._agent.get_partial_agent_metadata(inbound, True, ["UCX"])
        except errors() as error:
            raise ValueError(f"cannot be reached: NIXL of this side failed with {error}") from None

    def greeting(self) -> bytes:
        return GREETING.pack(MAGIC, len(self._metadata), self._address) + self._metadata

    def join(self, metadata: bytes, address: int) -> None:
        """Connect the agent with the peer's. metadata, address: from the peer's greeting."""
        try:
            self._peer_agent = self._agent.add_remote_agent(metadata)
        except errors() as error:
            raise ValueError(f"gave metadata that cannot be used: {error}") from None
        self._peer_address = address

    def put(self, at: int, piece: memoryview) -> None:
        stop = at + len(piece)
        self._out[at:stop] = piece
        self._spans.add(at, stop)

    def wait_put(self) -> None:
        asked, begun_s = False, time.monotonic()
        try:
            ours = [(self._address + RING_BYTES + start, stop - start, 0) for start, stop in self._spans]
            theirs = [(self._peer_address + start, stop - start, 0) for start, stop in self._spans]
            local, remote = self._agent.get_xfer_descs(ours, "DRAM"), self._agent.get_xfer_descs(theirs, "DRAM")
            self._write = self._agent.initialize_xfer("WRITE", local, remote, self._peer_agent)
            state = self._agent.transfer(self._write)
            while state == "PROC":
                asked = self._write_pending(begun_s, asked)
                time.sleep(PROGRESS_S)
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

    def wait_taken(self) -> None:
        pass

    def progress(self) -> None:
        """Make progress with a write of the peer, where it needs this process for that."""
        self._agent.get_new_notifs()

    def close(self) -> None:
        """The agent is released first: that cancels a pending write, and afterwards nothing accesses the memory."""
        self._write = self._agent = None
        self._in.release()
        self._out.release()
        self._map.close()


@cache
def library() -> ModuleType:
    """NIXL's Python module, with its logging turned off: it would log each agent to stdout. Raises ValueError if it is not installed."""
    raising = logging.raiseExceptions
    if quiet := "NIXL_LOG_LEVEL" not in os.environ:
        os.environ["NIXL_LOG_LEVEL"] = "FATAL"  # failures are raised as errors; the library would also write them to stderr
    try:
        from nixl import _api

        if quiet:
            logging.getLogger("nixl").setLevel(logging.CRITICAL)  # the module does this itself when it is first imported with that level
    except ImportError as error:
        raise ValueError(f"transport nixl needs NIXL ({error}); pip install 'abkt[nixl]'") from None
    finally:
        logging.raiseExceptions = raising  # the import changes it
    return _api  # type: ignore[no-any-return]


@cache
def errors() -> tuple[type[Exception], ...]:
    """The exception classes of NIXL, which have no common base class."""
    from nixl import _bindings

    return tuple(getattr(_bindings, name) for name in dir(_bindings) if name.startswith("nixl") and name.endswith("Error"))


@contextmanager
def _ucx_settings() -> Iterator[None]:
    """Set UCX_SETTINGS in the environment while an agent makes its UCX backend, and restore it for other users of UCX in this process."""
    with _environment_lock:
        before = {name: os.environ.get(name) for name in UCX_SETTINGS}
        os.environ.update(UCX_SETTINGS)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
