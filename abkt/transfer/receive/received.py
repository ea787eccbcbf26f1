"""One transfer as its receiver sees it: which bytes have arrived, and whether they are those that the sender committed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from abkt.transfer.pieces import ByteSink
from abkt.transfer.protocol.channel import Channel
from abkt.transfer.protocol.frame import HEADER_BYTES, MORE, FrameError, FrameHeader, digest_of
from abkt.transfer.protocol.messages import Commit, Grant, Offer


@dataclass(slots=True)
class Received:
    """A transfer as its receiver sees it. When it is passed to on_commit, its bytes up to `offer.ends[cut]` are complete and verified.

    Attributes
    ----------
    peer : str
        Name of the sender's node.
    epoch : int
        The attempt that brought the last bytes.
    sink : ByteSink
        The memory. Bytes up to offer.ends[cut] do not change any more. Bytes after that are part of an unfinished band, of a frame that
        broke off, or of refinement that is not committed yet.
    offered_s, granted_s, first_byte_s, last_byte_s, committed_s, refined_s : float
        Times on time.monotonic; nan if the event has not happened. refined_s is the time of the last COMMIT of refinement.
    payload_bytes : int
        Bytes in the sink.
    refine_bytes : int
        Wire bytes of the DATA frames after the first COMMIT.
    cut : int
        The finest committed cut; -1 before the first COMMIT.
    refinable : bool
        The sender announced refinement with its first COMMIT.
    refining : bool
        Refinement may still come; `decline` ends it.
    """

    peer: str
    transfer_id: int
    epoch: int
    offer: Offer
    sink: ByteSink
    offered_s: float
    granted_s: float
    first_byte_s: float = math.nan
    last_byte_s: float = math.nan
    committed_s: float = math.nan
    refined_s: float = math.nan
    payload_bytes: int = 0
    refine_bytes: int = 0
    cut: int = -1
    refinable: bool = False
    refining: bool = False
    declined: bool = False
    _tags: list[bytes] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return len(self._tags)

    @property
    def started(self) -> bool:
        """Whether a cut has been committed, so that decoding may start."""
        return self.cut >= 0

    def decline(self) -> None:
        """Refuse further refinement. May be called from any thread. The sender is told soon, and then on_settled is called."""
        self.declined = True

    def grant(self, price: float = 0.0) -> Grant:
        """The answer to an offer of this transfer."""
        size = min(self.sink.size, self.offer.size)
        return Grant(size, self.payload_bytes, self.frames, self.started, price, self.refining)

    def take(self, header: FrameHeader, channel: Channel) -> None:
        """Read one DATA frame into the sink. Raises FrameError before any byte is written outside of the granted range."""
        self._check_turn(header)
        if header.offset != self.payload_bytes:
            raise FrameError(f"DATA frame {header.sequence} starts at byte {header.offset}, not at {self.payload_bytes}")
        stop = header.offset + header.length
        if stop > min(self.sink.size, self.offer.size):
            raise FrameError(f"DATA frame {header.sequence} ends at byte {stop}, but {min(self.sink.size, self.offer.size)} were granted")
        if not self._tags:
            self.first_byte_s = time.monotonic()
        channel.payload(header, self.sink.buffers(header.offset, stop))
        self.last_byte_s = time.monotonic()
        self._tags.append(header.tag)
        self.payload_bytes = stop
        if self.started:
            self.refine_bytes += HEADER_BYTES + header.length

    def finish(self, header: FrameHeader, commit: Commit) -> None:
        """Check a COMMIT, the first one or one of refinement, against the bytes that have come. Raises FrameError."""
        self._check_turn(header)
        if commit.size != self.payload_bytes or commit.digest != digest_of(self._tags).hex():
            raise FrameError(f"COMMIT of {commit.size} bytes does not fit the {self.payload_bytes} that have come")
        if commit.cut != self.offer.cut_within(commit.size):
            raise FrameError(f"COMMIT of cut {commit.cut}, but {commit.size} bytes complete cut {self.offer.cut_within(commit.size)}")
        now_s = time.monotonic()
        more = bool(header.flags & MORE)
        if self.started:
            self.refined_s = now_s
        else:
            self.committed_s, self.refinable = now_s, more
        self.cut, self.refining = commit.cut, more

    def _check_turn(self, header: FrameHeader) -> None:
        if (header.transfer_id, header.epoch) != (self.transfer_id, self.epoch):
            raise FrameError(f"{header.type.name} frame of transfer {header.transfer_id}, epoch {header.epoch}, which was not granted")
        if header.sequence != len(self._tags):
            raise FrameError(
                f"{header.type.name} frame {header.sequence} of transfer {self.transfer_id} came when {len(self._tags)} was due"
            )
