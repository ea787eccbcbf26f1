"""Frames over a connection, and the keepalive: each side says something every `ping_s`, and silence of `silence_s` is an error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from abkt.transfer.device.pieces import Piece, Space, fetched
from abkt.transfer.device.tags import DeviceTags
from abkt.transfer.protocol.frame import CLOSING, HEADER_BYTES, TAG_BYTES, FrameError, FrameHeader, FrameType, parse
from abkt.transfer.protocol.messages import Abort
from abkt.transfer.protocol.tags import Plain, Tags
from abkt.transfer.transport import TICK_S, Connection, PeerError, PeerLost, PeerSilent, Refused


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Silence is noticed within 3 s: silence_s and one tick. greet_s: how long a peer may take to say who it is.

    resume_s: how long a sender tries to go on with a transfer whose connection broke. hold_s: how long its receiver keeps the memory and
    what has come; longer, because it may notice first.
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
        return min(TICK_S, self.ping_s / 2)


class Channel:
    """One connection as frames. Used by one thread."""

    def __init__(self, connection: Connection, keepalive: Keepalive) -> None:
        self.connection = connection
        self.keepalive = keepalive
        self.peer = connection.peer  # the node's name, once it has said HELLO
        self.outgoing: Tags = DeviceTags() if connection.device else Plain()
        self.incoming: Tags = DeviceTags() if connection.device else Plain()
        self.greeted_by_s = math.inf  # when whoever has not proved who it is must leave
        self._spoke_s = self._heard_s = time.monotonic()
        self._said = self._heard = 0  # frames
        self._within = False  # in the middle of a frame of ours, where no other may begin

    def send(self, header: FrameHeader, payload: Sequence[Piece] = (), waiting: Callable[[], None] = lambda: None) -> tuple[int, bytes]:
        """Seal and send one frame; header.length is set here if it is not right. `waiting` is called now and then. Returns (calls, tag)."""
        length = sum(map(len, payload))
        frame = self.outgoing.seal(header if header.length == length else replace(header, length=length), payload)
        self._within = True
        calls = self.connection.send(frame, waiting)  # type: ignore[arg-type]  # on a device only by DeviceTags
        self._within = False
        self._said += 1
        self._spoke_s = time.monotonic()
        return calls, bytes(fetched(frame[0])[-TAG_BYTES:])

    def arrived(self, timeout_s: float) -> bool:
        """Whether a frame has begun to arrive within timeout_s. Keeps the connection alive; raises PeerSilent."""
        self.tick()
        if self.connection.readable(timeout_s):
            return True
        if time.monotonic() - self._heard_s >= self.keepalive.silence_s:
            raise PeerSilent(f"{self.peer} has been silent for {self.keepalive.silence_s:g} s")
        return False

    def header(self) -> FrameHeader:
        """Wait for the next frame and read its header; raises FrameError if it is none."""
        while not self.arrived(self.keepalive.tick_s):
            pass
        data = bytearray(HEADER_BYTES)
        self.connection.receive([memoryview(data)], self.tick)
        self._heard_s = time.monotonic()
        self._heard += 1
        return parse(data)

    def payload(self, header: FrameHeader, buffers: Sequence[Space]) -> None:
        """Read the payload into the buffers, and check it; raises FrameError if it is damaged, and then the buffers hold rubbish."""
        self.incoming.open(header, buffers, lambda step: self.connection.receive(step, self.tick))  # type: ignore[arg-type]
        self._heard_s = time.monotonic()

    def message(self, header: FrameHeader) -> bytes:
        """The payload of any frame but DATA."""
        data = bytearray(header.length)
        self.payload(header, [memoryview(data)] if data else [])
        return bytes(data)

    def expect(self, kind: FrameType, waiting: Callable[[], None] = lambda: None) -> tuple[FrameHeader, bytes]:
        """The next frame that is not keepalive, which must be of this kind; `waiting` is called every tick."""
        while True:
            waiting()
            if self.arrived(self.keepalive.tick_s):
                header = self.header()
                if header.type is kind:
                    return header, self.message(header)
                self.aside(header)

    def aside(self, header: FrameHeader) -> None:
        """Take a frame that nobody waits for: PING may always come; ABORT raises PeerError or Refused, anything else FrameError."""
        if header.type is FrameType.ABORT:
            reason = Abort.parse(self.message(header)).reason
            raise (PeerError if header.flags else Refused)(f"{self.peer}: {reason}")
        if header.type is not FrameType.PING:
            raise FrameError(f"{header.type.name} frame came out of turn")
        self.message(header)
        if header.sequence != self._heard - 1:  # or both sides could wait for ever, and tell each other that they live
            raise FrameError(f"PING says that {header.sequence} frames were sent, but {self._heard - 1} have come")

    def abort(self, reason: str, transfer_id: int = 0, closing: bool = True) -> None:
        """Tell the peer why; if it cannot be told any more, the next use of the connection finds out."""
        if self._within:
            return
        with suppress(PeerError):
            self.send(FrameHeader(FrameType.ABORT, transfer_id, flags=CLOSING if closing else 0), [Abort(reason).payload()])

    def last_words(self) -> str:
        """Why the peer ended the connection, if it said so; for when sending failed."""
        try:
            while self.connection.readable(0):
                self.aside(self.header())
        except (PeerLost, FrameError):
            pass  # it left without a word
        except PeerError as error:
            return str(error)
        return ""

    def tick(self) -> None:
        """Between two frames, say that we live when it is time to. Raises PeerSilent if a stranger has stayed one for too long."""
        if self.greeted_by_s < math.inf and time.monotonic() >= self.greeted_by_s:
            raise PeerSilent(f"{self.peer} has not proved who it is within {self.keepalive.greet_s:g} s")
        if not self._within and time.monotonic() - self._spoke_s >= self.keepalive.ping_s:
            self.send(FrameHeader(FrameType.PING, sequence=self._said))
