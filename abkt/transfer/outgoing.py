"""One transfer, seen from the sender: OFFER, wait for GRANT, DATA while the cut may still move, COMMIT, wait for ACK; and resuming."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from abkt.transfer.channel import Channel
from abkt.transfer.frame import COMMITTED, HEADER_BYTES, FrameError, FrameType, Header, digest_of
from abkt.transfer.link import PacedLink
from abkt.transfer.messages import Ack, Commit, Grant, Offer
from abkt.transfer.pieces import ByteSource

FRAME_BYTES = (64 << 10, 4 << 20)
FRAME_S = 0.02


class Cancelled(Exception):
    """This side does not want the transfer any more."""


@dataclass(slots=True)
class Outgoing:
    """What to send, and who decides how much of it.

    next_cut(now_s, sent_bytes, sent_cut) is asked before every DATA frame and answers with the cut that the transfer shall reach: sent_cut
    is the finest cut that is complete with what has left (0 before that). The answer may move up and down; it is held between sent_cut
    and the finest cut that was granted, and the transfer ends as soon as it is reached, in the middle of a band if need be.
    on_sent(now_s, wire_bytes, duration_s) follows each DATA frame: the time it took, waiting for its link included, idle time not.
    on_ack(held_bytes, price) follows what the receiver says, now and then: how much it holds, and what a byte costs there.
    All run in the sender's thread and must return at once. cancel may be set from any thread.
    """

    transfer_id: int
    offer: Offer
    source: ByteSource
    next_cut: Callable[[float, int, int], int] | None = None  # none: everything
    on_sent: Callable[[float, int, float], None] = lambda now_s, wire_bytes, duration_s: None
    on_ack: Callable[[int, float], None] = lambda held_bytes, price: None
    cancel: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not 0 <= self.transfer_id < 1 << 64:
            raise ValueError(f"transfer id {self.transfer_id} must fit into 64 bits without a sign")
        if tuple(self.source.ends) != tuple(self.offer.ends):
            raise ValueError(f"transfer {self.transfer_id}: the offer's cuts are not those of its source")
        Offer.parse(self.offer.payload())  # better refused here than by the peer


@dataclass(slots=True)
class Sent:
    """What became of a transfer. Times are the link's clock, nan if it did not get so far; error is empty if it was acknowledged.

    first_byte_s: when the first DATA frame entered the link. last_byte_s: when the last was handed on. wire_bytes: headers and metadata
    counted, keepalive not. calls: of the transport, for the DATA frames. retries: connections that were found dead before the grant.
    resumes: connections that broke after it, where a new one took the transfer up. held_bytes, price: as the receiver said last.
    """

    transfer_id: int
    offered_s: float = math.nan
    granted_s: float = math.nan
    first_byte_s: float = math.nan
    last_byte_s: float = math.nan
    acked_s: float = math.nan
    wire_bytes: int = 0
    payload_bytes: int = 0
    calls: int = 0
    cut: int = -1
    retries: int = 0
    resumes: int = 0
    held_bytes: int = 0
    price: float = 0.0
    error: str = ""


@dataclass(slots=True)
class FrameSize:
    """How much to decide at once: what passes in about 20 ms at the rate of the last frames, 64 KiB to 4 MiB."""

    bytes_per_s: float = 0.0

    def observe(self, wire_bytes: int, duration_s: float) -> None:
        rate = wire_bytes / max(duration_s, 1e-9)
        self.bytes_per_s += (rate - self.bytes_per_s) * (0.3 if self.bytes_per_s else 1.0)

    def size(self) -> int:
        least, most = FRAME_BYTES
        return int(min(max(self.bytes_per_s * FRAME_S, least), most))

    def stop(self, ends: tuple[int, ...], start: int, cut: int) -> int:
        """Where the frame from byte `start` on ends: at the last end of a band within reach, if the frame is large enough then."""
        reach = min(start + self.size(), ends[cut])
        index = bisect_right(ends, reach) - 1
        return ends[index] if index >= 0 and ends[index] - start >= FRAME_BYTES[0] else reach


class Sending:
    """One Outgoing, run over a channel, and after a break over another; fills `sent` as it goes. serial: its number at this sender."""

    def __init__(self, outgoing: Outgoing, sent: Sent, link: PacedLink, size: FrameSize, serial: int, closing: threading.Event) -> None:
        self.outgoing = outgoing
        self.sent = sent
        self._link = link
        self._size = size
        self._serial = serial
        self._closing = closing
        self._epoch = -1
        self._tags: list[bytes] = []
        self._stops: list[int] = []
        self._ready_s = math.inf  # since when the next frame could have been on its way

    def run(self, channel: Channel) -> None:
        """Each call is a later epoch. Raises PeerError, FrameError or Cancelled; PeerLost and PeerSilent if it may be called again."""
        sent, offer, clock = self.sent, self.outgoing.offer, self._link.clock
        self._channel = channel
        self._epoch += 1
        self._ready_s = math.inf
        if math.isnan(sent.offered_s):
            sent.offered_s = clock()
        self._put(FrameType.OFFER, offer.payload(), self._serial)
        grant = Grant.parse(self._answer(FrameType.GRANT))
        if math.isnan(sent.granted_s):
            sent.granted_s = clock()
        else:
            sent.resumes += 1
        granted_cut = offer.cut_within(grant.size)
        if granted_cut < 0:
            raise Cancelled(f"{channel.peer} granted {grant.size} bytes, but the coarsest cut needs {offer.ends[0]}")
        self._take_up(grant)
        if not grant.committed:
            self._data(granted_cut)
            commit = Commit(sent.cut, sent.payload_bytes, digest_of(self._tags).hex())
            self._put(FrameType.COMMIT, commit.payload(), len(self._tags))
            self._told(sent.payload_bytes, Ack.parse(self._answer(FrameType.ACK, sent.payload_bytes)))
        sent.acked_s = clock()

    def _take_up(self, grant: Grant) -> None:
        """Go back to the last frame that is held; what was sent after it is lost."""
        known = self._stops[grant.frames - 1] if 0 < grant.frames <= len(self._stops) else 0
        complete = self.sent.cut >= 0 and grant.held == self.sent.payload_bytes
        if known != grant.held or (grant.committed and not complete):
            raise FrameError(f"GRANT says that {grant.held} bytes in {grant.frames} frames are held, which were not sent so")
        del self._tags[grant.frames :], self._stops[grant.frames :]
        self.sent.payload_bytes = self.sent.held_bytes = grant.held
        self.sent.price = grant.price

    def _data(self, granted_cut: int) -> None:
        """Send up to the cut, wherever it moves."""
        sent, ends, source = self.sent, self.outgoing.offer.ends, self.outgoing.source
        self._ready_s = math.inf
        begun_s = self._link.clock()
        while sent.payload_bytes < ends[cut := self._cut(granted_cut)]:
            stop = self._size.stop(ends, sent.payload_bytes, cut)
            payload = source.buffers(sent.payload_bytes, stop)
            size = stop - sent.payload_bytes
            if math.isnan(sent.first_byte_s):
                sent.first_byte_s = begun_s = self._link.clock()
            self._pass(HEADER_BYTES + size)
            header = Header(FrameType.DATA, self.outgoing.transfer_id, len(self._tags), sent.payload_bytes, self._epoch)
            calls, tag = self._channel.send(header, payload, self._listen)
            self._tags.append(tag)
            self._stops.append(stop)
            sent.calls += calls
            sent.payload_bytes = stop
            sent.wire_bytes += HEADER_BYTES + size
            now_s = self._link.clock()
            sent.last_byte_s = now_s
            self._size.observe(HEADER_BYTES + size, now_s - begun_s)
            self.outgoing.on_sent(now_s, HEADER_BYTES + size, now_s - begun_s)
            begun_s = now_s
        sent.cut = cut

    def _cut(self, granted_cut: int) -> int:
        """The cut as it stands now; whatever else has to be heeded between two frames is heeded first."""
        self._heed()
        complete = max(0, self.outgoing.offer.cut_within(self.sent.payload_bytes))
        if self.outgoing.next_cut is None:
            return granted_cut
        asked = self.outgoing.next_cut(self._link.clock(), self.sent.payload_bytes, complete)
        return min(max(asked, complete), granted_cut)

    def _pass(self, size: int) -> None:
        """Wait until the link has passed `size` bytes, keeping the connection alive."""
        passed_s = self._link.book(size, self._ready_s)
        while (left_s := passed_s - self._link.clock()) > 0:
            self._link.sleep(min(left_s, self._channel.keepalive.tick_s))
            self._heed()
        self._ready_s = passed_s

    def _put(self, kind: FrameType, payload: bytes, sequence: int = 0) -> None:
        self._pass(HEADER_BYTES + len(payload))
        self._channel.send(Header(kind, self.outgoing.transfer_id, sequence, epoch=self._epoch), [payload])
        self.sent.wire_bytes += HEADER_BYTES + len(payload)

    def _answer(self, kind: FrameType, offset: int = 0) -> bytes:
        while True:
            self.check_cancel()
            if not self._channel.arrived(self._channel.keepalive.tick_s):
                continue
            header = self._channel.header()
            if header.type is not kind or (kind is FrameType.ACK and not header.flags):
                self._aside(header)
                continue
            message = self._channel.message(header)
            if self._named(header) and header.offset == offset:
                return message
            raise FrameError(f"{kind.name} of transfer {header.transfer_id} came when {self.outgoing.transfer_id} waits for one")

    def _aside(self, header: Header) -> None:
        if header.type is not FrameType.ACK:
            self._channel.aside(header)
            return
        ack = Ack.parse(self._channel.message(header))
        if header.flags & COMMITTED or not self._named(header) or header.offset > self.sent.payload_bytes:
            raise FrameError(f"ACK of {header.offset} bytes of transfer {header.transfer_id} came, which were not sent")
        self._told(header.offset, ack)

    def _told(self, held_bytes: int, ack: Ack) -> None:
        self.sent.held_bytes, self.sent.price = held_bytes, ack.price
        self.outgoing.on_ack(held_bytes, ack.price)

    def _named(self, header: Header) -> bool:
        return (header.transfer_id, header.epoch) == (self.outgoing.transfer_id, self._epoch)

    def _heed(self) -> None:
        """Between two frames: take what has come, and see whether to go on."""
        self.check_cancel()
        self._listen()

    def _listen(self) -> None:
        """Take what has come, even in the middle of a frame: bytes that go into a peer's kernel are no sign of its life."""
        while self._channel.arrived(0):
            self._aside(self._channel.header())

    def check_cancel(self) -> None:
        if self.outgoing.cancel.is_set():
            raise Cancelled("cancelled by its sender")
        if self._closing.is_set():
            raise Cancelled("the sender was closed")
