"""Frames over a connection, with a keepalive: a side that has nothing to send sends a PING, and a silent peer is an error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from abkt.transfer.buffers import Piece, Space
from abkt.transfer.device.staging import to_host
from abkt.transfer.protocol.device_tags import DeviceTags
from abkt.transfer.protocol.frame import CLOSING, HEADER_BYTES, TAG_BYTES, FrameError, FrameHeader, FrameType, parse
from abkt.transfer.protocol.messages import Abort
from abkt.transfer.protocol.tags import PlainTags, Tags
from abkt.transfer.transport import TICK_S, Connection, PeerError, PeerLost, PeerSilent, Refused


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The time limits of a connection. With the defaults a silent peer is noticed within 3 s (silence_s and one tick).

    Parameters
    ----------
    ping_s : float
        A side that has sent nothing for this long sends a PING.
    silence_s : float
        A peer from which nothing has come for this long is an error. At least two pings.
    greet_s : float
        Time that a peer has for the handshake.
    resume_s : float
        How long a sender tries to reconnect and go on with a transfer whose connection broke.
    hold_s : float
        How long the receiver keeps the memory and the bytes of such a transfer. At least resume_s, since it may notice the break first.
    """

    ping_s: float = 0.8
    silence_s: float = 2.5
    greet_s: float = 5.0
    resume_s: float = 3.0
    hold_s: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < 2 * self.ping_s <= self.silence_s:
            raise ValueError(f"keepalive: silence of {self.silence_s:g} s must be at least two pings of {self.ping_s:g} s")
        if not (0 <= self.resume_s <= self.hold_s and self.greet_s > 0):
            raise ValueError(f"keepalive: memory held for {self.hold_s:g} s must outlast the {self.resume_s:g} s of resuming")

    @property
    def tick_s(self) -> float:
        """The longest wait between two checks."""
        return min(TICK_S, self.ping_s / 2)


class Channel:
    """One connection as a sequence of frames in each direction. Used by one thread.

    Parameters
    ----------
    connection : Connection
        The byte stream.
    keepalive : Keepalive
        Its time limits.

    Attributes
    ----------
    peer : str
        The peer's address; after its HELLO, the name of its node.
    outgoing, incoming : Tags
        How frames are sealed and opened. The handshake replaces them if there is a key.
    handshake_deadline_s : float
        Time (time.monotonic) by which the peer must have finished the handshake; inf outside of it.
    """

    def __init__(self, connection: Connection, keepalive: Keepalive) -> None:
        self.connection = connection
        self.keepalive = keepalive
        self.peer = connection.peer
        self.outgoing: Tags = DeviceTags() if connection.device else PlainTags()
        self.incoming: Tags = DeviceTags() if connection.device else PlainTags()
        self.handshake_deadline_s = math.inf
        self._last_sent_s = self._last_received_s = time.monotonic()
        self._frames_sent = self._frames_received = 0
        self._mid_frame = False  # a frame of this side is only partly sent, so no other may begin

    def send(self, header: FrameHeader, payload: Sequence[Piece] = (), on_wait: Callable[[], None] = lambda: None) -> tuple[int, bytes]:
        """Seal and send one frame. Its header gets the length of the payload.

        Parameters
        ----------
        header : FrameHeader
            Without its tag; the length may be missing.
        payload : sequence of pieces
            Sent in their order.
        on_wait : callable
            Called from time to time while sending has to wait.

        Returns
        -------
        (int, bytes)
            Number of calls of the transport, and the tag.

        Raises
        ------
        PeerLost, PeerSilent
            As Connection.send does.
        """
        length = sum(map(len, payload))
        frame = self.outgoing.seal(header if header.length == length else replace(header, length=length), payload)
        self._mid_frame = True
        calls = self.connection.send(frame, on_wait)  # type: ignore[arg-type]  # only DeviceTags leave a piece on a device
        self._mid_frame = False
        self._frames_sent += 1
        self._last_sent_s = time.monotonic()
        return calls, bytes(to_host(frame[0])[-TAG_BYTES:])

    def arrived(self, timeout_s: float) -> bool:
        """Whether a frame has begun to arrive within timeout_s. Sends a PING if one is due. Raises PeerSilent."""
        self.tick()
        if self.connection.readable(timeout_s):
            return True
        if time.monotonic() - self._last_received_s >= self.keepalive.silence_s:
            raise PeerSilent(f"{self.peer} has been silent for {self.keepalive.silence_s:g} s")
        return False

    def header(self) -> FrameHeader:
        """Wait for the next frame and read its header. Raises FrameError if it is malformed."""
        while not self.arrived(self.keepalive.tick_s):
            pass
        data = bytearray(HEADER_BYTES)
        self.connection.receive([memoryview(data)], self.tick)
        self._last_received_s = time.monotonic()
        self._frames_received += 1
        return parse(data)

    def payload(self, header: FrameHeader, buffers: Sequence[Space]) -> None:
        """Read the payload into the buffers and check it. Raises FrameError if it is damaged; the buffers are undefined then."""
        self.incoming.open(header, buffers, lambda step: self.connection.receive(step, self.tick))  # type: ignore[arg-type]
        self._last_received_s = time.monotonic()

    def message(self, header: FrameHeader) -> bytes:
        """Read the payload of a frame other than DATA."""
        data = bytearray(header.length)
        self.payload(header, [memoryview(data)] if data else [])
        return bytes(data)

    def expect(self, kind: FrameType, on_wait: Callable[[], None] = lambda: None) -> tuple[FrameHeader, bytes]:
        """Wait for a frame of this kind; PINGs before it are handled. Any other frame raises, as `control_frame` does.

        on_wait is called every tick.
        """
        while True:
            on_wait()
            if self.arrived(self.keepalive.tick_s):
                header = self.header()
                if header.type is kind:
                    return header, self.message(header)
                self.control_frame(header)

    def control_frame(self, header: FrameHeader) -> None:
        """Handle a frame that is not part of a transfer's normal course.

        A PING is allowed at any time. An ABORT raises PeerError if it ends the connection, else Refused. Any other frame raises FrameError.
        """
        if header.type is FrameType.ABORT:
            reason = Abort.parse(self.message(header)).reason
            raise (PeerError if header.flags else Refused)(f"{self.peer}: {reason}")
        if header.type is not FrameType.PING:
            raise FrameError(f"{header.type.name} frame came out of turn")
        self.message(header)
        # If a frame was lost, each side could wait for the other forever while their PINGs keep the connection alive.
        if header.sequence != self._frames_received - 1:
            raise FrameError(f"PING says that {header.sequence} frames were sent, but {self._frames_received - 1} have come")

    def abort(self, reason: str, transfer_id: int = 0, closing: bool = True) -> None:
        """Send an ABORT with the reason. If the peer cannot be reached, the next use of the connection raises the error."""
        if self._mid_frame:
            return
        with suppress(PeerError):
            self.send(FrameHeader(FrameType.ABORT, transfer_id, flags=CLOSING if closing else 0), [Abort(reason).payload()])

    def abort_reason(self) -> str:
        """After sending has failed: the reason that the peer gave in an ABORT, or an empty text."""
        try:
            while self.connection.readable(0):
                self.control_frame(self.header())
        except (PeerLost, FrameError):
            pass  # it ended the connection without a reason
        except PeerError as error:
            return str(error)
        return ""

    def tick(self) -> None:
        """Send a PING if one is due and no frame is partly sent. Raises PeerSilent if the handshake takes too long."""
        if self.handshake_deadline_s < math.inf and time.monotonic() >= self.handshake_deadline_s:
            raise PeerSilent(f"{self.peer} has not completed the handshake within {self.keepalive.greet_s:g} s")
        if not self._mid_frame and time.monotonic() - self._last_sent_s >= self.keepalive.ping_s:
            self.send(FrameHeader(FrameType.PING, sequence=self._frames_sent))
