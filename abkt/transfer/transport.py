"""What carries frames from one process to another. A backend is one file with one class; tests/transfer runs one suite over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from abkt.transfer.frame import Buffer

TICK_S = 0.25  # how often a thread that waits looks around


class PeerError(ConnectionError):
    """A transfer failed because of its peer, which the message names. One line."""


class PeerLost(PeerError):
    """The connection could not be made, or has ended."""


class PeerSilent(PeerError):
    """The connection stands, but nothing moves on it."""


class Refused(PeerError):
    """The receiver does not take this transfer; the connection goes on."""


class Connection(Protocol):
    """An ordered stream of bytes to one peer. One thread uses it; only `abort` may be called from another."""

    peer: str

    def send(self, buffers: Sequence[Buffer], waiting: Callable[[], None]) -> int:
        """Hand all the bytes on; returns how many calls it took. `waiting` is called now and then, if it takes more than one.

        Raises PeerLost, or PeerSilent if no byte is taken for long.
        """
        ...

    def receive(self, buffers: Sequence[memoryview], waiting: Callable[[], None]) -> None:
        """Fill all the buffers; `waiting` is called now and then. Raises PeerLost, or PeerSilent if no byte comes for long."""
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
