"""One transfer as its sender describes it (`Outgoing`), and its results (`Sent`, `RefinementResult`)."""

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
CUT_BYTES = 64  # frames within one band end at multiples of this, so that their parts stay aligned in memory


class Cancelled(Exception):
    """This side has cancelled the transfer, or cannot send it."""


@dataclass(slots=True)
class Outgoing:
    """A transfer to send, and the callbacks that decide how much of it is sent.

    The callbacks run in the sender's thread and must return at once. Times are seconds on the clock of the sender's link. A cut is an
    index into `offer.ends`. `sent_cut` is the finest cut that is complete with the bytes sent so far.

    Parameters
    ----------
    transfer_id : int
        64 bits. It may be used again once the transfer has ended.
    offer : Offer
        What the receiver is told before the transfer.
    source : ByteSource
        The bytes. They must not change until the future has its result and, if there is a refinement, until it has ended.
    next_cut : callable, optional
        ``next_cut(now_s, sent_bytes, sent_cut) -> cut`` is called before each DATA frame. The transfer ends as soon as it reaches the
        returned cut, if need be in the middle of a band. The answer may rise and fall from call to call; it is limited to the range from
        sent_cut (0 before any cut is complete) to the finest cut that the receiver granted. Without it everything is sent.
    available : callable, optional
        ``available(now_s, sent_bytes) -> (stop, is_end)``, instead of next_cut, for a source that still grows: the byte up to which may
        be sent now, and whether that is the end of the source.
    on_sent : callable, optional
        ``on_sent(now_s, wire_bytes, duration_s)`` is called after each DATA frame with the time it took: waiting for the link is
        included, idle time is not.
    on_ack : callable, optional
        ``on_ack(held_bytes, price)`` is called with the receiver's grant and its acknowledgements: the bytes it holds, and the price of a
        byte at its NIC.
    next_refinement_cut : callable, optional
        ``next_refinement_cut(now_s, sent_bytes, sent_cut) -> cut`` is called once the transfer is acknowledged, whenever no other transfer
        waits: the cut to refine to. A cut that is not above sent_cut means: nothing now. Without it nothing is refined.
    on_refinement_end : callable, optional
        ``on_refinement_end(RefinementResult)`` is called once, if `Sent.refining` was true.
    cancel : threading.Event
        Set it from any thread to cancel the transfer, or its refinement.

    Raises
    ------
    ValueError
        If the id does not fit 64 bits, the offer is malformed, or its cuts differ from those of the source.
    """

    transfer_id: int
    offer: Offer
    source: ByteSource
    next_cut: Callable[[float, int, int], int] | None = None
    available: Callable[[float, int], tuple[int, bool]] | None = None
    on_sent: Callable[[float, int, float], None] = lambda now_s, wire_bytes, duration_s: None
    on_ack: Callable[[int, float], None] = lambda held_bytes, price: None
    next_refinement_cut: Callable[[float, int, int], int] | None = None
    on_refinement_end: Callable[[RefinementResult], None] = lambda result: None
    cancel: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not 0 <= self.transfer_id < 1 << 64:
            raise ValueError(f"transfer id {self.transfer_id} must fit into 64 bits without a sign")
        if tuple(self.source.ends) != tuple(self.offer.ends):
            raise ValueError(f"transfer {self.transfer_id}: the offer's cuts are not those of its source")
        Offer.parse(self.offer.payload())  # a malformed offer is better refused here than by the peer


@dataclass(slots=True)
class Sent:
    """The result of a transfer.

    Parameters
    ----------
    transfer_id : int
        As in the Outgoing.
    offered_s, granted_s, acked_s : float
        Times at which the offer was sent, and the first grant and the final acknowledgement came, on the link's clock; nan if the transfer
        did not get so far.
    first_byte_s, last_byte_s : float
        Times at which the first DATA frame entered the link, and the last one was handed to the transport.
    wire_bytes : int
        Bytes sent, including headers and messages, but not keepalive.
    payload_bytes : int
        Payload bytes sent.
    calls : int
        Calls of the transport for the DATA frames.
    cut : int
        The cut that was committed; -1 if none was.
    retries : int
        Connections that were found dead before the grant.
    resumes : int
        Connections that broke after the grant and were replaced by a new one.
    held_bytes, price : int, float
        As the receiver reported last.
    refining : bool
        Refinement follows, and on_refinement_end is still to be called.
    error : str
        Empty if the transfer was acknowledged, else one line.
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
class RefinementResult:
    """The result of a transfer's refinement.

    cut: the finest cut that the receiver acknowledged. wire_bytes, calls: as in Sent, for the refinement alone. finish_s: the time at which
    its last byte was handed to the transport, nan if there was none. reason: why it ended early; empty if everything was sent, or either
    side wanted no more.
    """

    transfer_id: int
    cut: int
    wire_bytes: int
    calls: int
    finish_s: float
    reason: str = ""


@dataclass(slots=True)
class FrameSize:
    """Chooses the size of a DATA frame: what passes in about 20 ms at the rate of the last frames, from 64 KiB to most_bytes.

    The cut can move only between two frames, so small frames keep the decision late and large ones save calls.
    most_bytes: 8 MiB, or less where larger frames gain nothing on the connection.
    """

    bytes_per_s: float = 0.0
    most_bytes: int = FRAME_BYTES[1]

    def observe(self, wire_bytes: int, duration_s: float) -> None:
        rate = wire_bytes / max(duration_s, 1e-9)
        self.bytes_per_s += (rate - self.bytes_per_s) * (0.3 if self.bytes_per_s else 1.0)

    def size(self) -> int:
        return int(min(max(self.bytes_per_s * FRAME_S, FRAME_BYTES[0]), self.most_bytes)) // CUT_BYTES * CUT_BYTES

    def stop(self, ends: tuple[int, ...], start: int, cut: int) -> int:
        """The byte at which the frame that begins at `start` ends: with the last band within reach, if the frame is large enough then."""
        reach = min(start + self.size(), ends[cut])
        index = bisect_right(ends, reach) - 1
        return ends[index] if index >= 0 and ends[index] - start >= FRAME_BYTES[0] else reach
