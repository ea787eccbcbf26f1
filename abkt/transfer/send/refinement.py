"""Refinement: finer bands of transfers that are already committed, sent while no other transfer waits for the same peer.

A committed transfer stays open here as long as its receiver wants finer bands and there are any. Between two frames the sender looks for a
new transfer, which goes first; before it starts, a COMMIT covers the bands that are complete, so that the receiver can use them meanwhile.
The newest transfer is refined first, because most of its tokens are still to be decoded. After a broken connection each transfer is
offered again, and given up if it made no progress since the last break. If refinement fails, the committed transfer stays valid.
"""

from __future__ import annotations

import logging
import math

from abkt.transfer.protocol.channel import Channel
from abkt.transfer.protocol.frame import COMMITTED, FrameError, FrameHeader, FrameType
from abkt.transfer.protocol.messages import Abort, Ack
from abkt.transfer.send.outgoing import RefinementResult
from abkt.transfer.send.transfer import OutgoingTransfer
from abkt.transfer.transport import Refused

log = logging.getLogger(__name__)


class RefiningTransfer:
    """One transfer from its first acknowledgement to the end of its refinement.

    Attributes
    ----------
    closing : bool
        The last COMMIT has been sent.
    ended : bool
        Refinement has ended, and the peer knows it or will be told by `must_answer`.
    must_answer : bool
        The peer has aborted the refinement, and this side still has to answer with an ABORT.
    cut : int
        The finest cut that the peer has acknowledged.
    """

    def __init__(self, transfer: OutgoingTransfer, channel: Channel) -> None:
        self.transfer = transfer
        self.channel = channel
        self.closing = self.ended = self.must_answer = False
        self.cut = self._committed_cut = transfer.sent.cut
        self.reason = ""
        self._unanswered_commits = 0
        self._resumed_bytes = -1
        self._start = transfer.sent.wire_bytes, transfer.sent.calls
        self._last_s = math.nan

    def step(self) -> bool:
        """Send one DATA frame or one COMMIT. Returns whether there was one to send."""
        transfer, outgoing, sent = self.transfer, self.transfer.outgoing, self.transfer.sent
        if self.closing or self.ended:
            return False
        if outgoing.cancel.is_set() or not transfer.rest or outgoing.next_refinement_cut is None:
            return self.commit(last=True)
        complete = transfer.complete
        cut = min(max(outgoing.next_refinement_cut(transfer.clock(), sent.payload_bytes, complete), complete), transfer.granted_cut)
        if sent.payload_bytes >= outgoing.offer.ends[cut]:
            return self.commit()
        transfer.frame(transfer.stop(cut))
        self._last_s = sent.last_byte_s
        return True

    def commit(self, last: bool = False) -> bool:
        """Send a COMMIT of the bands that were completed since the last one. Returns whether one was sent.

        last: end the refinement, even if no band was completed.
        """
        transfer = self.transfer
        transfer.pause()
        if self.closing or self.ended or (not last and transfer.complete <= self._committed_cut):
            return False
        self.closing = last or not transfer.rest
        self._committed_cut = transfer.complete
        self._unanswered_commits += 1
        transfer.commit(more=not self.closing)
        return True

    def resume(self, channel: Channel) -> None:
        """Go on over a new connection. A transfer that made no progress since the last break is given up."""
        sent = self.transfer.sent
        if self._resumed_bytes >= sent.held_bytes or self.transfer.outgoing.cancel.is_set():
            self.ended, self.reason = True, "its connection broke"
            return
        self._resumed_bytes = sent.held_bytes
        sent.cut, self._committed_cut, self._unanswered_commits, self.closing = self.cut, -1, 0, False
        try:
            grant = self.transfer.offer(channel)
        except Refused as error:
            self.ended, self.reason = True, str(error)
            return
        self.channel = channel
        if not grant.committed:
            raise FrameError(f"{channel.peer} has forgotten transfer {sent.transfer_id}, which it had acknowledged")
        self.ended = not grant.refining

    def take(self, header: FrameHeader) -> None:
        """Read an ACK or ABORT of this transfer. May be called while a frame is partly sent, so nothing is sent here."""
        if header.type is FrameType.ABORT:
            Abort.parse(self.channel.message(header))
            self.ended, self.must_answer = True, not self.closing
            return
        self.transfer.acknowledged(header, Ack.parse(self.channel.message(header)))
        if header.flags & COMMITTED:
            self._unanswered_commits -= 1
            self.cut = max(self.cut, self.transfer.outgoing.offer.cut_within(header.offset))
            self.ended |= self.closing and self._unanswered_commits == 0

    def result(self, reason: str) -> RefinementResult:
        sent, (wire_bytes, calls) = self.transfer.sent, self._start
        return RefinementResult(
            sent.transfer_id, self.cut, sent.wire_bytes - wire_bytes, sent.calls - calls, self._last_s, self.reason or reason
        )


class RefinementSender:
    """The refinements of one sender, by transfer id. Used by its thread alone."""

    def __init__(self) -> None:
        self._open: dict[int, RefiningTransfer] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, transfer: OutgoingTransfer, channel: Channel) -> None:
        self._open[transfer.outgoing.transfer_id] = RefiningTransfer(transfer, channel)

    def take(self, header: FrameHeader, channel: Channel) -> bool:
        """Read the frame if it belongs to a transfer that is being refined. Returns whether it did."""
        refining = self._open.get(header.transfer_id)
        expected = header.type is FrameType.ACK or (header.type is FrameType.ABORT and not header.flags)
        if not refining or not expected or refining.channel is not channel or refining.ended:
            return False
        refining.take(header)
        return True

    def step(self, channel: Channel) -> bool:
        """Send the next frame of the newest transfer that has one. Returns whether there may be more. Raises as OutgoingTransfer does."""
        self.remove_ended(channel)
        for refining in reversed(self._open.values()):
            if refining.channel is not channel:
                refining.resume(channel)
                return True
            if refining.step():
                return True
        return False

    def pause(self, channel: Channel) -> None:
        """Commit the bands that are complete, before a new transfer starts."""
        for refining in self._open.values():
            if refining.channel is channel:
                refining.commit()
        self.remove_ended(channel)

    def clear(self, transfer_id: int, channel: Channel) -> None:
        """End the refinement of this transfer and wait for the answer, so that its id can be used again."""
        refining = self._open.get(transfer_id)
        if refining and refining.channel is channel:
            refining.commit(last=True)
            while not refining.ended:
                if channel.arrived(channel.keepalive.tick_s):
                    header = channel.header()
                    if not self.take(header, channel):
                        channel.control_frame(header)
            self.remove_ended(channel)
        elif refining:
            self._end(refining, "its connection broke")

    def remove_ended(self, channel: Channel) -> None:
        """Remove the refinements that have ended, and answer the peer where it waits for that. Called between two frames."""
        for refining in [each for each in self._open.values() if each.ended]:
            if refining.must_answer and refining.channel is channel:
                channel.abort("the refinement has ended", refining.transfer.outgoing.transfer_id, closing=False)
            self._end(refining, "")

    def drop(self, reason: str) -> None:
        """End all refinements, because the connection failed or this side closes."""
        for refining in list(self._open.values()):
            self._end(refining, "" if refining.ended else reason)

    def _end(self, refining: RefiningTransfer, reason: str) -> None:
        outgoing = refining.transfer.outgoing
        del self._open[outgoing.transfer_id]
        try:
            outgoing.on_refinement_end(refining.result(reason))
        except Exception:
            log.exception("transfer %d: on_refinement_end failed", outgoing.transfer_id)
