"""Connections over blocking stream sockets: sendmsg and recvmsg_into on scattered memory, with a limit on how long a peer may stall."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from abkt.transfer.buffers import Buffer
from abkt.transfer.protocol.frame import DATA_CAP_BYTES
from abkt.transfer.transport import TICK_S, Connection, PeerLost, PeerSilent, ReceiveProgress

IOV_MAX = os.sysconf("SC_IOV_MAX")
BACKLOG = 1024  # connections that wait to be accepted; the kernel may hold fewer
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)


class StreamConnection:
    """A connected stream socket. The timeouts are set in the kernel, so a call that finds bytes needs no poll."""

    device = False
    frame_bytes = DATA_CAP_BYTES

    def __init__(self, connected: socket.socket, peer: str, silence_s: float) -> None:
        self.peer = peer
        self._socket = connected
        self._silence_s = silence_s
        connected.setblocking(True)
        self._tick_s = min(TICK_S, silence_s / 4)
        tick = struct.pack("ll", 0, int(self._tick_s * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        rest: Sequence[Buffer] = buffers
        calls, moved_s = 0, time.monotonic()
        while rest:
            try:
                calls += 1
                sent = self._socket.sendmsg(rest[:IOV_MAX])
            except BlockingIOError:
                self._check_stalled(moved_s)
            except OSError as error:
                raise self._lost(error) from None
            else:
                moved_s = time.monotonic()
                rest = rest_after(rest, sent)
            if rest:
                on_wait()
        return calls

    def receive(self, buffers: Sequence[memoryview], on_wait: Callable[[], None]) -> None:
        rest: Sequence[Buffer] = buffers
        progress = ReceiveProgress(self.peer, self._silence_s)
        while rest:
            try:
                got = self._socket.recvmsg_into(rest[:IOV_MAX], 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                progress.add(0)
            except OSError as error:
                raise self._lost(error) from None
            else:
                if not got:
                    raise PeerLost(f"{self.peer} closed the connection")
                rest = rest_after(rest, got)
                progress.add(got)
            on_wait()

    def readable(self, timeout_s: float) -> bool:
        return bool(self._poll.poll(timeout_s * 1e3))

    def abort(self) -> None:
        with suppress(OSError):  # it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _check_stalled(self, moved_s: float) -> None:
        """Raises PeerSilent if the last byte moved too long ago."""
        if time.monotonic() - moved_s >= self._silence_s:
            raise PeerSilent(f"{self.peer} has moved no byte for {self._silence_s:g} s in the middle of a frame")

    def _lost(self, error: OSError) -> PeerLost:
        return PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}")


class StreamListener:
    """A listening stream socket.

    make: makes the connection from an accepted socket and the peer's name. path: file of a Unix socket, removed on close.
    """

    def __init__(self, listening: socket.socket, address: str, make: Callable[[socket.socket, str], Connection], path: str = "") -> None:
        self.address = address
        self._socket = listening
        self._make = make
        self._path = path
        self._full = False  # the last accept failed because the system has no descriptor or memory left
        self._aborted = threading.Event()
        listening.setblocking(False)
        self._poll = select.poll()
        self._poll.register(listening, select.POLLIN)

    def accept(self, timeout_s: float) -> Connection | None:
        if not self._poll.poll(timeout_s * 1e3):
            return None
        try:
            connected, address = self._socket.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._pause(error, timeout_s)
            return None  # else the peer has left already, or this side was aborted
        if self._full:
            self._full = False
            log.warning("%s: connections are accepted again", self.address)
        peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"a peer of {self.address}"
        try:
            return self._make(connected, peer)
        except OSError:
            connected.close()
            return None  # the peer has left already

    def _pause(self, error: OSError, timeout_s: float) -> None:
        """Wait for others to free what is missing: the connection stays in the queue, so poll would return at once."""
        if not self._full:
            self._full = True
            log.warning("%s: no connection can be accepted: %s; trying again", self.address, error.strerror)
        self._aborted.wait(timeout_s)

    def abort(self) -> None:
        self._aborted.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        if self._path:
            os.unlink(self._path)


def rest_after(buffers: Sequence[Buffer], done: int) -> Sequence[Buffer]:
    """The buffers without their first `done` bytes."""
    for index, buffer in enumerate(buffers):
        if done < len(buffer):
            return [memoryview(buffer)[done:], *buffers[index + 1 :]] if done else buffers[index:]
        done -= len(buffer)
    return ()
