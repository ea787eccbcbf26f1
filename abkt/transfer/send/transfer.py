"""One transfer under way: OFFER, wait for GRANT, DATA while the cut may still move, COMMIT, wait for ACK; and resuming.

What may follow that, behind the start, is behind.py's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Protocol

from abkt.transfer.link import PacedLink
from abkt.transfer.protocol.channel import Channel
from abkt.transfer.protocol.frame import COMMITTED, HEADER_BYTES, MORE, FrameError, FrameHeader, FrameType, digest_of
from abkt.transfer.protocol.messages import Ack, Commit, Grant
from abkt.transfer.send.outgoing import Cancelled, FrameSize, Outgoing, Sent

GROWING_S = 0.002  # between two looks at a source that grows


class Others(Protocol):
    """The transfers of this connection that are refined: they take the frames that are theirs."""

    def take(self, header: FrameHeader, channel: Channel) -> bool: ...


class Sending:
    """One Outgoing, run over a channel, and after a break over another; fills `sent` as it goes. serial: its number at this sender."""

    def __init__(
        self, outgoing: Outgoing, sent: Sent, link: PacedLink, size: FrameSize, serial: int, closing: threading.Event, others: Others
    ) -> None:
        self.outgoing = outgoing
        self.sent = sent
        self.clock = link.clock
        self._link = link
        self._size = size
        self._serial = serial
        self._closing = closing
        self._others = others
        self._epoch = -1
        self._tags: list[bytes] = []
        self._stops: list[int] = []
        self.granted_cut = 0
        self._begun_s = self._ready_s = math.inf  # since when the next frame was made, and could have been on its way
        self._leaving = 0  # up to this byte, of the frame that is being sent: its peer may have it before the call returns

    def run(self, channel: Channel) -> None:
        """Each call is a later epoch. Raises PeerError, FrameError or Cancelled; PeerLost and PeerSilent if it may be called again."""
        sent = self.sent
        grant = self.offer(channel)
        if not grant.committed:
            self._data()
            sent.refining = self.outgoing.next_behind is not None and self.rest > 0
            self.promise(sent.refining)
            self._told(sent.payload_bytes, Ack.parse(self._answer(FrameType.ACK, sent.payload_bytes)))
        elif sent.refining:
            sent.refining = grant.refining
        sent.acked_s = self.clock()

    @property
    def rest(self) -> int:
        """Bytes that were granted and have not left."""
        return self.outgoing.offer.ends[self.granted_cut] - self.sent.payload_bytes

    @property
    def complete(self) -> int:
        """The finest cut that is whole with what has left; -1 if none is."""
        return self.outgoing.offer.cut_within(self.sent.payload_bytes)

    def offer(self, channel: Channel) -> Grant:
        """Say what is to come, for the first time or again, and wait for what may be sent of it."""
        sent, offer = self.sent, self.outgoing.offer
        self._channel = channel
        self._epoch += 1
        self.pause()
        self._leaving = 0
        if math.isnan(sent.offered_s):
            sent.offered_s = self.clock()
        self._put(FrameType.OFFER, offer.payload(), self._serial)
        grant = Grant.parse(self._answer(FrameType.GRANT))
        if math.isnan(sent.granted_s):
            sent.granted_s = self.clock()
        else:
            sent.resumes += 1
        self.granted_cut = offer.cut_within(grant.size)
        if self.granted_cut < 0:
            raise Cancelled(f"{channel.peer} granted {grant.size} bytes, but the coarsest cut needs {offer.ends[0]}")
        self._take_up(grant)
        self._told(grant.held, Ack(grant.price))
        return grant

    def stop(self, cut: int) -> int:
        """Where the next DATA frame on the way to the end of `cut` ends."""
        return self._size.stop(self.outgoing.offer.ends, self.sent.payload_bytes, cut)

    def frame(self, stop: int) -> None:
        """One DATA frame, up to this byte."""
        sent = self.sent
        payload = self.outgoing.source.buffers(sent.payload_bytes, stop)
        size = HEADER_BYTES + stop - sent.payload_bytes
        self._begun_s = min(self._begun_s, self.clock())
        if math.isnan(sent.first_byte_s):
            sent.first_byte_s = self._begun_s
        self._pass(size)
        header = FrameHeader(
            FrameType.DATA, self.outgoing.transfer_id, len(self._tags), sent.payload_bytes, self._epoch, size - HEADER_BYTES
        )
        self._leaving = stop
        calls, tag = self._channel.send(header, payload, self._listen)
        self._tags.append(tag)
        self._stops.append(stop)
        sent.calls += calls
        sent.payload_bytes = stop
        sent.wire_bytes += size
        begun_s, self._begun_s = self._begun_s, self.clock()
        sent.last_byte_s = self._begun_s
        self._size.observe(size, self._begun_s - begun_s)
        self.outgoing.on_sent(self._begun_s, size, self._begun_s - begun_s)

    def pause(self) -> None:
        """What was sent last is no reason any more for the next frame to have been on its way since."""
        self._begun_s = self._ready_s = math.inf

    def promise(self, more: bool) -> None:
        """COMMIT of what has left."""
        sent = self.sent
        sent.cut = self.complete
        commit = Commit(sent.cut, sent.payload_bytes, digest_of(self._tags).hex())
        self._put(FrameType.COMMIT, commit.payload(), len(self._tags), MORE if more else 0)

    def is_named(self, header: FrameHeader) -> bool:
        return (header.transfer_id, header.epoch) == (self.outgoing.transfer_id, self._epoch)

    def heard(self, header: FrameHeader, ack: Ack) -> None:
        """An acknowledgement of this transfer."""
        if not self.is_named(header) or header.offset > max(self.sent.payload_bytes, self._leaving):
            raise FrameError(f"ACK of {header.offset} bytes of transfer {header.transfer_id} came, which were not sent")
        self._told(header.offset, ack)

    def _take_up(self, grant: Grant) -> None:
        """Go back to the last frame that is held; what was sent after it is lost."""
        known = self._stops[grant.frames - 1] if 0 < grant.frames <= len(self._stops) else 0
        promised = self.sent.cut >= 0 and grant.held >= self.outgoing.offer.ends[self.sent.cut]
        if known != grant.held or (grant.committed and not promised):
            raise FrameError(f"GRANT says that {grant.held} bytes in {grant.frames} frames are held, which were not sent so")
        del self._tags[grant.frames :], self._stops[grant.frames :]
        self.sent.payload_bytes = grant.held

    def _data(self) -> None:
        """Send up to the cut, wherever it moves."""
        self.pause()
        self._begun_s = self.clock()
        if self.outgoing.available:
            self._data_as_it_comes(self.outgoing.available)
            return
        while self.sent.payload_bytes < self.outgoing.offer.ends[cut := self._cut()]:
            self.frame(self.stop(cut))

    def _data_as_it_comes(self, available: Callable[[float, int], tuple[int, bool]]) -> None:
        """Of a source that grows: what there is, until that is all."""
        granted_bytes = self.outgoing.offer.ends[self.granted_cut]
        while True:
            self._heed()
            until, last = available(self.clock(), self.sent.payload_bytes)
            if until > granted_bytes:
                raise Cancelled(f"{self._channel.peer} granted {granted_bytes} bytes, but {until} are to be sent")
            if self.sent.payload_bytes < until:
                self.frame(min(until, self.sent.payload_bytes + self._size.size()))
            elif last:
                return
            else:
                self.pause()
                if self._channel.arrived(GROWING_S):
                    self._aside(self._channel.header())

    def _cut(self) -> int:
        """The cut as it stands now; whatever else has to be heeded between two frames is heeded first."""
        self._heed()
        if self.outgoing.next_cut is None:
            return self.granted_cut
        complete = max(0, self.complete)
        asked = self.outgoing.next_cut(self.clock(), self.sent.payload_bytes, complete)
        return min(max(asked, complete), self.granted_cut)

    def _pass(self, size: int) -> None:
        """Wait until the link has passed `size` bytes, keeping the connection alive."""
        passed_s = self._link.book(size, self._ready_s)
        while (left_s := passed_s - self.clock()) > 0:
            self._link.sleep(min(left_s, self._channel.keepalive.tick_s))
            self._heed()
        self._ready_s = passed_s

    def _put(self, kind: FrameType, payload: bytes, sequence: int = 0, flags: int = 0) -> None:
        self._pass(HEADER_BYTES + len(payload))
        self._channel.send(FrameHeader(kind, self.outgoing.transfer_id, sequence, epoch=self._epoch, flags=flags), [payload])
        self.sent.wire_bytes += HEADER_BYTES + len(payload)

    def _answer(self, kind: FrameType, offset: int = 0) -> bytes:
        while True:
            self.check_cancel()
            if not self._channel.arrived(self._channel.keepalive.tick_s):
                continue
            header = self._channel.header()
            if self._others.take(header, self._channel):
                continue
            if header.type is not kind or (kind is FrameType.ACK and not header.flags):
                self._aside(header)
                continue
            message = self._channel.message(header)
            if self.is_named(header) and header.offset == offset:
                return message
            raise FrameError(f"{kind.name} of transfer {header.transfer_id} came when {self.outgoing.transfer_id} waits for one")

    def _aside(self, header: FrameHeader) -> None:
        if self._others.take(header, self._channel):
            return
        if header.type is not FrameType.ACK:
            self._channel.aside(header)
            return
        ack = Ack.parse(self._channel.message(header))
        if header.flags & COMMITTED:
            raise FrameError(f"ACK of {header.offset} bytes of transfer {header.transfer_id} came before their COMMIT")
        self.heard(header, ack)

    def _told(self, held_bytes: int, ack: Ack) -> None:
        self.sent.held_bytes, self.sent.price = held_bytes, ack.price
        self.outgoing.on_ack(held_bytes, ack.price)

    def _heed(self) -> None:
        """Between two frames: take what has come, and see whether to go on."""
        self.check_cancel()
        self._listen()

    def _listen(self) -> None:
        """Take what has come, even in the middle of a frame: bytes that go into a peer's kernel are no sign of its life."""
        while self._channel.arrived(0):
            self._aside(self._channel.header())

    def check_cancel(self) -> None:
        if self.outgoing.cancel.is_set() and math.isnan(self.sent.acked_s):
            raise Cancelled("cancelled by its sender")
        if self._closing.is_set():
            raise Cancelled("the sender was closed")
