"""What follows transfers behind their start: better values, sent while nothing more urgent waits for the same peer.

A transfer that was acknowledged stays open here as long as its receiver wants better values and there are any. Between two frames the
sender looks for a new transfer, which goes first; what is whole by then is promised by a COMMIT, so that it is of use meanwhile. The
newest goes first among them: it has most of its tokens still to come. After a break each is offered again, once; whatever goes wrong,
the transfer was good before and stays so.
"""

from __future__ import annotations

import logging
import math

from abkt.transfer.protocol.channel import Channel
from abkt.transfer.protocol.frame import COMMITTED, FrameError, FrameHeader, FrameType
from abkt.transfer.protocol.messages import Abort, Ack
from abkt.transfer.send.outgoing import Followed
from abkt.transfer.send.transfer import Sending
from abkt.transfer.transport import Refused

log = logging.getLogger(__name__)


class Following:
    """One transfer from its first acknowledgement on. closing: its last COMMIT is out. over: nothing follows, and its peer knows, or is
    told by an answer. cut: the finest that the peer has acknowledged."""

    def __init__(self, sending: Sending, channel: Channel) -> None:
        self.sending = sending
        self.channel = channel
        self.closing = self.over = self.answer = False
        self.cut = self._promised_cut = sending.sent.cut
        self.reason = ""
        self._unanswered = 0  # COMMITs
        self._resumed_bytes = -1
        self._start = sending.sent.wire_bytes, sending.sent.calls
        self._last_s = math.nan

    def step(self) -> bool:
        """A frame, or a COMMIT; whether there was anything to do."""
        sending, outgoing, sent = self.sending, self.sending.outgoing, self.sending.sent
        if self.closing or self.over:
            return False
        if outgoing.cancel.is_set() or not sending.rest or outgoing.next_behind is None:
            return self.promise(last=True)
        complete = sending.complete
        cut = min(max(outgoing.next_behind(sending.clock(), sent.payload_bytes, complete), complete), sending.granted_cut)
        if sent.payload_bytes >= outgoing.offer.ends[cut]:
            return self.promise()
        sending.frame(sending.stop(cut))
        self._last_s = sent.last_byte_s
        return True

    def promise(self, last: bool = False) -> bool:
        """COMMIT of what has come to be whole since the last one, if anything has, or to end this."""
        sending = self.sending
        sending.pause()
        if self.closing or self.over or (not last and sending.complete <= self._promised_cut):
            return False
        self.closing = last or not sending.rest
        self._promised_cut = sending.complete
        self._unanswered += 1
        sending.promise(more=not self.closing)
        return True

    def resume(self, channel: Channel) -> None:
        """Over a new connection. What does not get any further from one break to the next is given up."""
        sent = self.sending.sent
        if self._resumed_bytes >= sent.held_bytes or self.sending.outgoing.cancel.is_set():
            self.over, self.reason = True, "its connection broke"
            return
        self._resumed_bytes = sent.held_bytes
        sent.cut, self._promised_cut, self._unanswered, self.closing = self.cut, -1, 0, False
        try:
            grant = self.sending.offer(channel)
        except Refused as error:
            self.over, self.reason = True, str(error)
            return
        self.channel = channel
        if not grant.committed:
            raise FrameError(f"{channel.peer} has forgotten transfer {sent.transfer_id}, which it had acknowledged")
        self.over = not grant.refining

    def take(self, header: FrameHeader) -> None:
        """May be called in the middle of a frame, so nothing is sent here."""
        if header.type is FrameType.ABORT:
            Abort.parse(self.channel.message(header))
            self.over, self.answer = True, not self.closing
            return
        self.sending.heard(header, Ack.parse(self.channel.message(header)))
        if header.flags & COMMITTED:
            self._unanswered -= 1
            self.cut = max(self.cut, self.sending.outgoing.offer.cut_within(header.offset))
            self.over |= self.closing and self._unanswered == 0

    def followed(self, reason: str) -> Followed:
        sent, (wire_bytes, calls) = self.sending.sent, self._start
        return Followed(sent.transfer_id, self.cut, sent.wire_bytes - wire_bytes, sent.calls - calls, self._last_s, self.reason or reason)


class RefinementSender:
    """All of one sender. Used by its thread alone."""

    def __init__(self) -> None:
        self._open: dict[int, Following] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, sending: Sending, channel: Channel) -> None:
        self._open[sending.outgoing.transfer_id] = Following(sending, channel)

    def take(self, header: FrameHeader, channel: Channel) -> bool:
        """Whether this frame belongs to one of them; then it is read."""
        following = self._open.get(header.transfer_id)
        mine = header.type is FrameType.ACK or (header.type is FrameType.ABORT and not header.flags)
        if not following or not mine or following.channel is not channel or following.over:
            return False
        following.take(header)
        return True

    def step(self, channel: Channel) -> bool:
        """The next frame of the newest that has one; whether there is more to do at once. Raises as Sending does."""
        self.tidy(channel)
        for following in reversed(self._open.values()):
            if following.channel is not channel:
                following.resume(channel)
                return True
            if following.step():
                return True
        return False

    def pause(self, channel: Channel) -> None:
        """Something more urgent comes."""
        for following in self._open.values():
            if following.channel is channel:
                following.promise()
        self.tidy(channel)

    def clear(self, transfer_id: int, channel: Channel) -> None:
        """So that this number can be used again."""
        following = self._open.get(transfer_id)
        if following and following.channel is channel:
            following.promise(last=True)
            while not following.over:
                if channel.arrived(channel.keepalive.tick_s):
                    header = channel.header()
                    if not self.take(header, channel):
                        channel.aside(header)
            self.tidy(channel)
        elif following:
            self._end(following, "its connection broke")

    def tidy(self, channel: Channel) -> None:
        """Let go of those that are over, and answer where the peer waits for it; between two frames."""
        for following in [each for each in self._open.values() if each.over]:
            if following.answer and following.channel is channel:
                channel.abort("no better values follow", following.sending.outgoing.transfer_id, closing=False)
            self._end(following, "")

    def drop(self, reason: str) -> None:
        """All of them, because of the connection or of this side."""
        for following in list(self._open.values()):
            self._end(following, "" if following.over else reason)

    def _end(self, following: Following, reason: str) -> None:
        del self._open[following.sending.outgoing.transfer_id]
        try:
            following.sending.outgoing.on_followed(following.followed(reason))
        except Exception:
            log.exception("transfer %d: what followed it could not be told", following.sending.outgoing.transfer_id)
