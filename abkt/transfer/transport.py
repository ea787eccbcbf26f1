"""The interface of a transport: how frames get from one process to another. Each transport is one file with one main class.

tests/transfer runs one conformance suite and one fault suite over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from abkt.transfer.buffers import Buffer

TICK_S = 0.25  # the longest a thread blocks before it checks for keepalive, cancellation and closing
LEAST_BYTES = 4096  # fewer bytes than this within silence_s, in the middle of a frame, count as silence


class PeerError(ConnectionError):
    """A transfer failed because of its peer, which the message names. The message is one line."""


class PeerLost(PeerError):
    """The connection could not be made, or has ended."""


class PeerSilent(PeerError):
    """The connection is open, but nothing moves on it."""


class Refused(PeerError):
    """The receiver refuses this transfer. The connection stays usable."""


class ReceiveProgress:
    """Checks that the bytes of a frame keep coming: fewer than LEAST_BYTES within `silence_s` is an error."""

    def __init__(self, peer: str, silence_s: float) -> None:
        self._peer = peer
        self._silence_s = silence_s
        self._since_s = time.monotonic()
        self._bytes = 0

    def add(self, count: int) -> None:
        """Count the bytes received since the last call, which may be 0. Raises PeerSilent."""
        now_s = time.monotonic()
        self._bytes += count
        if self._bytes >= LEAST_BYTES:
            self._bytes, self._since_s = 0, now_s
        elif now_s - self._since_s >= self._silence_s:
            moved = f"only {self._bytes} bytes" if self._bytes else "no byte"
            raise PeerSilent(f"{self._peer} has moved {moved} for {self._silence_s:g} s in the middle of a frame")


class Connection(Protocol):
    """An ordered byte stream to one peer. One thread uses it; only `abort` may be called from another thread.

    Attributes
    ----------
    peer : str
        Name of the peer for messages: its address, until its HELLO has given its name.
    device : bool
        Whether `send` and `receive` also take tensors on a device.
    frame_bytes : int
        Payload size beyond which larger frames gain nothing on this connection.
    """

    peer: str
    device: bool
    frame_bytes: int

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        """Send all the bytes.

        Parameters
        ----------
        buffers : sequence of buffers
            Sent in their order, as one run of bytes.
        on_wait : callable
            Called from time to time while the call has to wait. It may raise, which ends the call.

        Returns
        -------
        int
            Number of calls (of the system, or copies on a device) that it took.

        Raises
        ------
        PeerLost
            If the connection has ended.
        PeerSilent
            If the peer takes no byte for `silence_s`.
        """
        ...

    def receive(self, buffers: Sequence[memoryview], on_wait: Callable[[], None]) -> None:
        """Fill all the buffers. `on_wait` is called from time to time. Raises PeerLost; PeerSilent as ReceiveProgress does."""
        ...

    def readable(self, timeout_s: float) -> bool:
        """Whether `receive` would find a byte, or the end of the connection, within timeout_s."""
        ...

    def abort(self) -> None:
        """End the connection now. The thread that uses it gets PeerLost, and still has to close it."""
        ...

    def close(self) -> None: ...


class Listener(Protocol):
    """Accepts connections.

    Attributes
    ----------
    address : str
        Address that a peer connects to. If port 0 was requested, it has the port that was assigned.
    """

    address: str

    def accept(self, timeout_s: float) -> Connection | None:
        """The next connection, or None if none came within timeout_s."""
        ...

    def abort(self) -> None:
        """Wake a thread that waits in `accept`. May be called from any thread; no connection is accepted afterwards."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """Makes connections. Each transport has its own format of addresses: host:port, or the path of a Unix socket."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> Connection:
        """Connect to a listener.

        Parameters
        ----------
        address : str
            Address of the listener.
        silence_s : float
            How long the peer may make no progress in the middle of a frame.
        keyed : bool
            Whether both sides will prove that they hold the same key. Without a key, an address that other hosts can reach is refused.

        Raises
        ------
        PeerLost
            If nobody listens there.
        ValueError
            If the address is malformed or needs a key.
        """
        ...

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> Listener:
        """Listen at an address; parameters as in `connect`. Raises ValueError, one line, if the address is malformed or taken."""
        ...
