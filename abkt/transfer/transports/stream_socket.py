"""Blocking stream sockets: sendmsg and recvmsg_into over scattered memory, with a limit on how long a peer may stand still."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from abkt.transfer.protocol.frame import DATA_CAP_BYTES, Buffer
from abkt.transfer.transport import TICK_S, Connection, PeerLost, PeerSilent, TransportProgress

IOV_MAX = os.sysconf("SC_IOV_MAX")


class StreamConnection:
    """A connected stream socket. Its timeouts live in the kernel, so a call that finds bytes costs no poll."""

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

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        rest: Sequence[Buffer] = buffers
        calls, moved_s = 0, time.monotonic()
        while rest:
            try:
                calls += 1
                sent = self._socket.sendmsg(rest[:IOV_MAX])
            except BlockingIOError:
                self._complain(moved_s)
            except OSError as error:
                raise self._lost(error) from None
            else:
                moved_s = time.monotonic()
                rest = after(rest, sent)
            if rest:
                waiting()
        return calls

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        rest: Sequence[Buffer] = buffers
        progress = TransportProgress(self.peer, self._silence_s)
        while rest:
            try:
                got = self._socket.recvmsg_into(rest[:IOV_MAX], 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                progress.came(0)
            except OSError as error:
                raise self._lost(error) from None
            else:
                if not got:
                    raise PeerLost(f"{self.peer} closed the connection")
                rest = after(rest, got)
                progress.came(got)
            waiting()

    def readable(self, timeout_s: float) -> bool:
        return bool(self._poll.poll(timeout_s * 1e3))

    def abort(self) -> None:
        with suppress(OSError):  # it may have ended already, which is what was asked for
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _complain(self, moved_s: float) -> None:
        if time.monotonic() - moved_s >= self._silence_s:
            raise PeerSilent(f"{self.peer} has moved no byte for {self._silence_s:g} s in the middle of a frame")

    def _lost(self, error: OSError) -> PeerLost:
        return PeerLost(f"the connection with {self.peer} broke: {error.strerror or error}")


class StreamListener:
    """A listening stream socket; made: the connection of a socket and its peer's name. path: the file to remove at the end."""

    def __init__(self, listening: socket.socket, address: str, made: Callable[[socket.socket, str], Connection], path: str = "") -> None:
        self.address = address
        self._socket = listening
        self._made = made
        self._path = path
        listening.setblocking(False)
        self._poll = select.poll()
        self._poll.register(listening, select.POLLIN)

    def accept(self, timeout_s: float) -> Connection | None:
        if not self._poll.poll(timeout_s * 1e3):
            return None
        try:
            connected, address = self._socket.accept()
        except OSError:
            return None  # whoever knocked has left, or this side was told to stop
        peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"a peer of {self.address}"
        return self._made(connected, peer)

    def abort(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        if self._path:
            os.unlink(self._path)


def after(buffers: Sequence[Buffer], done: int) -> Sequence[Buffer]:
    """What is left of the buffers after `done` bytes."""
    for index, buffer in enumerate(buffers):
        if done < len(buffer):
            return [memoryview(buffer)[done:], *buffers[index + 1 :]] if done else buffers[index:]
        done -= len(buffer)
    return ()
