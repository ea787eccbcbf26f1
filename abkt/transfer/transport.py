"""What carries frames from one process to another. A backend is one file with one class; tests/transfer runs one suite over all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from abkt.transfer.protocol.frame import Buffer

TICK_S = 0.25  # how often a thread that waits looks around
LEAST_BYTES = 4096  # that must come within silence_s inside of a frame, so that a few now and then are no sign of life


class PeerError(ConnectionError):
    """A transfer failed because of its peer, which the message names. One line."""


class PeerLost(PeerError):
    """The connection could not be made, or has ended."""


class PeerSilent(PeerError):
    """The connection stands, but nothing moves on it."""


class Refused(PeerError):
    """The receiver does not take this transfer; the connection goes on."""


class TransportProgress:
    """Of bytes that are being received. Raises PeerSilent if fewer than LEAST_BYTES come within silence_s."""

    def __init__(self, peer: str, silence_s: float) -> None:
        self._peer = peer
        self._silence_s = silence_s
        self._since_s = time.monotonic()
        self._bytes = 0

    def came(self, count: int) -> None:
        """count: bytes since the last call; 0 if none came."""
        now_s = time.monotonic()
        self._bytes += count
        if self._bytes >= LEAST_BYTES:
            self._bytes, self._since_s = 0, now_s
        elif now_s - self._since_s >= self._silence_s:
            moved = f"only {self._bytes} bytes" if self._bytes else "no byte"
            raise PeerSilent(f"{self._peer} has moved {moved} for {self._silence_s:g} s in the middle of a frame")


class Connection(Protocol):
    """An ordered stream of bytes to one peer. One thread uses it; only `abort` may be called from another.

    device: whether `send` and `receive` take memory of a device too (device.py). frame_bytes: the payload beyond which a larger frame
    saves nothing.
    """

    peer: str
    device: bool
    frame_bytes: int

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        """Hand all the bytes on; returns how many calls it took. `waiting` is called now and then, if it takes more than one.

        Raises PeerLost, or PeerSilent if no byte is taken for long.
        """
        ...

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        """Fill all the buffers; `waiting` is called now and then. Raises PeerLost, or PeerSilent as Progress does."""
        ...

    def readable(self, timeout_s: float) -> bool:
        """Whether `receive` would find a byte, or the end, within timeout_s."""
        ...

    def abort(self) -> None:
        """End the connection now: the thread that uses it gets PeerLost. It still has to close it."""
        ...

    def close(self) -> None: ...


class Listener(Protocol):
    address: str  # what a peer connects to; the port that was given, where 0 was asked for

    def accept(self, timeout_s: float) -> Connection | None:
        """The next connection; None if none came."""
        ...

    def abort(self) -> None:
        """Wake the thread that is in accept; it may be called from another. No connection comes any more."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """Addresses are texts of the backend's own form. silence_s: how long a peer may make no progress inside of a frame.

    keyed: both sides will prove that they hold the same key; without, an address that others than this host reach is refused.
    """

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> Connection:
        """Raises PeerLost if nobody answers, ValueError on a bad address."""
        ...

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> Listener:
        """Raises ValueError, one line, on a bad address or one that is taken."""
        ...
