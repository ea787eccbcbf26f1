"""One transfer while it is sent: OFFER, wait for GRANT, DATA while the cut may still move, COMMIT, wait for ACK; and its resumption.

Refinement after the acknowledgement is in refinement.py.
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

GROWING_S = 0.002  # time between two checks of a source that grows


class RefinementFrames(Protocol):
    """Reads the frames of transfers that are being refined over the same connection."""

    def take(self, header: FrameHeader, channel: Channel) -> bool:
        """Read the frame if it belongs to one of these transfers. Returns whether it did."""
        ...


class OutgoingTransfer:
    """Sends one Outgoing over a channel and, after a broken connection, over the next one.

    sent: filled in as the transfer goes on. serial: how many transfers this sender has offered before. closing: set when the sender closes.
    refinements: takes the frames of other transfers that are refined over the same connection.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        sent: Sent,
        link: PacedLink,
        size: FrameSize,
        serial: int,
        closing: threading.Event,
        refinements: RefinementFrames,
    ) -> None:
        self.outgoing = outgoing
        self.sent = sent
        self.clock = link.clock
        self._link = link
        self._size = size
        self._serial = serial
        self._closing = closing
        self._refinements = refinements
        self._epoch = -1
        self._tags: list[bytes] = []
        self._stops: list[int] = []
        self.granted_cut = 0
        self._begun_s = math.inf  # when work on the next frame began
        self._ready_s = math.inf  # time since which the next frame could have been queued at the link
        self._sending_until = 0  # end of the frame that is being sent: the peer may acknowledge it before the send call returns

    def run(self, channel: Channel) -> None:
        """Send the transfer over this channel; each call is a new epoch.

        Raises PeerError, FrameError or Cancelled. After PeerLost and PeerSilent it may be called again with a new channel.
        """
        sent = self.sent
        grant = self.offer(channel)
        if not grant.committed:
            self._data()
            sent.refining = self.outgoing.next_refinement_cut is not None and self.rest > 0
            self.commit(sent.refining)
            self._set_held(sent.payload_bytes, Ack.parse(self._answer(FrameType.ACK, sent.payload_bytes)))
        elif sent.refining:
            sent.refining = grant.refining
        sent.acked_s = self.clock()

    @property
    def rest(self) -> int:
        """Bytes that were granted and have not been sent."""
        return self.outgoing.offer.ends[self.granted_cut] - self.sent.payload_bytes

    @property
    def complete(self) -> int:
        """The finest cut that is complete with the bytes sent; -1 if none is."""
        return self.outgoing.offer.cut_within(self.sent.payload_bytes)

    def offer(self, channel: Channel) -> Grant:
        """Send the offer, for the first time or after a break, and wait for the grant."""
        sent, offer = self.sent, self.outgoing.offer
        self._channel = channel
        self._epoch += 1
        self.pause()
        self._sending_until = 0
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
        self._rewind(grant)
        self._set_held(grant.held, Ack(grant.price))
        return grant

    def stop(self, cut: int) -> int:
        """The byte at which the next DATA frame towards the end of `cut` ends."""
        return self._size.stop(self.outgoing.offer.ends, self.sent.payload_bytes, cut)

    def frame(self, stop: int) -> None:
        """Send one DATA frame, up to this byte."""
        sent = self.sent
        payload = self.outgoing.source.buffers(sent.payload_bytes, stop)
        size = HEADER_BYTES + stop - sent.payload_bytes
        self._begun_s = min(self._begun_s, self.clock())
        if math.isnan(sent.first_byte_s):
            sent.first_byte_s = self._begun_s
        self._wait_for_link(size)
        header = FrameHeader(
            FrameType.DATA, self.outgoing.transfer_id, len(self._tags), sent.payload_bytes, self._epoch, size - HEADER_BYTES
        )
        self._sending_until = stop
        calls, tag = self._channel.send(header, payload, self._read_frames)
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
        """The stream of frames is interrupted: the next frame could not have been queued at the link before now."""
        self._begun_s = self._ready_s = math.inf

    def commit(self, more: bool) -> None:
        """Send a COMMIT of the finest cut that is complete. more: refinement follows."""
        sent = self.sent
        sent.cut = self.complete
        message = Commit(sent.cut, sent.payload_bytes, digest_of(self._tags).hex())
        self._put(FrameType.COMMIT, message.payload(), len(self._tags), MORE if more else 0)

    def is_addressed(self, header: FrameHeader) -> bool:
        """Whether the frame belongs to this transfer and epoch."""
        return (header.transfer_id, header.epoch) == (self.outgoing.transfer_id, self._epoch)

    def acknowledged(self, header: FrameHeader, ack: Ack) -> None:
        """Handle an acknowledgement of this transfer. Raises FrameError if it covers bytes that were not sent."""
        if not self.is_addressed(header) or header.offset > max(self.sent.payload_bytes, self._sending_until):
            raise FrameError(f"ACK of {header.offset} bytes of transfer {header.transfer_id} came, which were not sent")
        self._set_held(header.offset, ack)

    def _rewind(self, grant: Grant) -> None:
        """Go back to the last frame that the receiver holds. Frames sent after it were lost."""
        known = self._stops[grant.frames - 1] if 0 < grant.frames <= len(self._stops) else 0
        committed = self.sent.cut >= 0 and grant.held >= self.outgoing.offer.ends[self.sent.cut]
        if known != grant.held or (grant.committed and not committed):
            raise FrameError(f"GRANT says that {grant.held} bytes in {grant.frames} frames are held, which were not sent so")
        del self._tags[grant.frames :], self._stops[grant.frames :]
        self.sent.payload_bytes = grant.held

    def _data(self) -> None:
        """Send DATA up to the cut, which may move after each frame."""
        self.pause()
        self._begun_s = self.clock()
        if self.outgoing.available:
            self._data_of_growing_source(self.outgoing.available)
            return
        while self.sent.payload_bytes < self.outgoing.offer.ends[cut := self._cut()]:
            self.frame(self.stop(cut))

    def _data_of_growing_source(self, available: Callable[[float, int], tuple[int, bool]]) -> None:
        """Send the bytes that are available, until the source says that it has ended."""
        granted_bytes = self.outgoing.offer.ends[self.granted_cut]
        while True:
            self._check_and_read()
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
                    self._unexpected(self._channel.header())

    def _cut(self) -> int:
        """The cut to send up to, as decided now. Frames that have come are read first."""
        self._check_and_read()
        if self.outgoing.next_cut is None:
            return self.granted_cut
        complete = max(0, self.complete)
        asked = self.outgoing.next_cut(self.clock(), self.sent.payload_bytes, complete)
        return min(max(asked, complete), self.granted_cut)

    def _wait_for_link(self, size: int) -> None:
        """Wait until `size` more bytes have passed the paced link, keeping the connection alive."""
        passed_s = self._link.book(size, self._ready_s)
        while (left_s := passed_s - self.clock()) > 0:
            self._link.sleep(min(left_s, self._channel.keepalive.tick_s))
            self._check_and_read()
        self._ready_s = passed_s

    def _put(self, kind: FrameType, payload: bytes, sequence: int = 0, flags: int = 0) -> None:
        """Send a frame with a message."""
        self._wait_for_link(HEADER_BYTES + len(payload))
        self._channel.send(FrameHeader(kind, self.outgoing.transfer_id, sequence, epoch=self._epoch, flags=flags), [payload])
        self.sent.wire_bytes += HEADER_BYTES + len(payload)

    def _answer(self, kind: FrameType, offset: int = 0) -> bytes:
        """Wait for the receiver's GRANT, or for its ACK of a COMMIT."""
        while True:
            self.check_cancel()
            if not self._channel.arrived(self._channel.keepalive.tick_s):
                continue
            header = self._channel.header()
            if self._refinements.take(header, self._channel):
                continue
            if header.type is not kind or (kind is FrameType.ACK and not header.flags):
                self._unexpected(header)
                continue
            message = self._channel.message(header)
            if self.is_addressed(header) and header.offset == offset:
                return message
            raise FrameError(f"{kind.name} of transfer {header.transfer_id} came when {self.outgoing.transfer_id} waits for one")

    def _unexpected(self, header: FrameHeader) -> None:
        """Handle a frame that nothing waits for: an ACK of progress, a frame of a refinement, a PING or an ABORT."""
        if self._refinements.take(header, self._channel):
            return
        if header.type is not FrameType.ACK:
            self._channel.control_frame(header)
            return
        ack = Ack.parse(self._channel.message(header))
        if header.flags & COMMITTED:
            raise FrameError(f"ACK of {header.offset} bytes of transfer {header.transfer_id} came before their COMMIT")
        self.acknowledged(header, ack)

    def _set_held(self, held_bytes: int, ack: Ack) -> None:
        self.sent.held_bytes, self.sent.price = held_bytes, ack.price
        self.outgoing.on_ack(held_bytes, ack.price)

    def _check_and_read(self) -> None:
        """Between two frames: raise if the transfer was cancelled, and read the frames that have come."""
        self.check_cancel()
        self._read_frames()

    def _read_frames(self) -> None:
        """Read the frames that have come; also called while a frame is partly sent.

        That the peer's kernel takes bytes does not show that the peer is alive; only frames from it do.
        """
        while self._channel.arrived(0):
            self._unexpected(self._channel.header())

    def check_cancel(self) -> None:
        """Raises Cancelled if the transfer was cancelled before its acknowledgement, or the sender is closing."""
        if self.outgoing.cancel.is_set() and math.isnan(self.sent.acked_s):
            raise Cancelled("cancelled by its sender")
        if self._closing.is_set():
            raise Cancelled("the sender was closed")
