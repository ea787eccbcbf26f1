"""One transfer, seen from the sender: what is to be sent, who decides how much of it, and what became of it."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from abkt.transfer.pieces import ByteSource
from abkt.transfer.protocol.messages import Offer

FRAME_BYTES = (64 << 10, 8 << 20)
FRAME_S = 0.02
CUT_BYTES = 64  # frames of one band are cut at multiples of this, so that their parts stay aligned in memory


class Cancelled(Exception):
    """This side does not want the transfer any more."""


@dataclass(slots=True)
class Outgoing:
    """What to send, and who decides how much of it.

    next_cut(now_s, sent_bytes, sent_cut) is asked before every DATA frame and answers with the cut that the transfer shall reach: sent_cut
    is the finest cut that is complete with what has left (0 before that). The answer may move up and down; it is held between sent_cut
    and the finest cut that was granted, and the transfer ends as soon as it is reached, in the middle of a band if need be.
    available(now_s, sent_bytes), instead of next_cut, is for a source that still grows: (the byte up to which may be sent now, whether that
    is the end).
    on_sent(now_s, wire_bytes, duration_s) follows each DATA frame: the time it took, waiting for its link included, idle time not.
    on_ack(held_bytes, price) follows what the receiver says, with its grant and now and then: what it holds, and what a byte costs there.
    next_behind(now_s, sent_bytes, sent_cut), if there is one, is asked once the transfer is acknowledged, whenever nothing more urgent
    waits, for the cut to go on to; none above sent_cut: not now. on_followed(Followed) ends that, once.
    All run in the sender's thread and must return at once. cancel may be set from any thread.
    """

    transfer_id: int
    offer: Offer
    source: ByteSource
    next_cut: Callable[[float, int, int], int] | None = None  # none: everything
    available: Callable[[float, int], tuple[int, bool]] | None = None
    on_sent: Callable[[float, int, float], None] = lambda now_s, wire_bytes, duration_s: None
    on_ack: Callable[[int, float], None] = lambda held_bytes, price: None
    next_behind: Callable[[float, int, int], int] | None = None  # none: nothing follows
    on_followed: Callable[[Followed], None] = lambda followed: None
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
    refining: it may be refined behind its start, and on_followed is still to be called.
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
    refining: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Followed:
    """What followed a transfer behind its start. cut: what was reached; wire_bytes, calls: of that alone; finish_s: when its last byte was
    handed on, nan if there was none. reason: why it ended; empty if all was sent, or no better was wanted on either side."""

    transfer_id: int
    cut: int
    wire_bytes: int
    calls: int
    finish_s: float
    reason: str = ""


@dataclass(slots=True)
class FrameSize:
    """How much to decide at once: what passes in about 20 ms at the rate of the last frames, 64 KiB to 8 MiB.

    most_bytes: less than 8 MiB, where the connection has no use for more.
    """

    bytes_per_s: float = 0.0
    most_bytes: int = FRAME_BYTES[1]

    def observe(self, wire_bytes: int, duration_s: float) -> None:
        rate = wire_bytes / max(duration_s, 1e-9)
        self.bytes_per_s += (rate - self.bytes_per_s) * (0.3 if self.bytes_per_s else 1.0)

    def size(self) -> int:
        return int(min(max(self.bytes_per_s * FRAME_S, FRAME_BYTES[0]), self.most_bytes)) // CUT_BYTES * CUT_BYTES

    def stop(self, ends: tuple[int, ...], start: int, cut: int) -> int:
        """Where the frame from byte `start` on ends: at the last end of a band within reach, if the frame is large enough then."""
        reach = min(start + self.size(), ends[cut])
        index = bisect_right(ends, reach) - 1
        return ends[index] if index >= 0 and ends[index] - start >= FRAME_BYTES[0] else reach
