"""One transfer as its receiver has it: what came, and whether it is what was promised."""

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
    """A transfer as its receiver sees it; complete and verified once it is passed to on_commit. Times are CLOCK_MONOTONIC.

    payload_bytes have come into the sink. cut is what was promised of them, the first time and since: bytes up to offer.ends[cut] count and
    stay as they are, any after that are the start of a band that was given up, of a frame that broke off, or on their way still. epoch:
    the try that brought the last of them. refine_bytes: on the wire, of DATA after the first promise. refinable: better values were
    announced. refining: they may follow still; `decline` ends that, from any thread.
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
        """A cut was promised and is there."""
        return self.cut >= 0

    def decline(self) -> None:
        """Want no better values any more; the sender is told soon, and then the receiver's on_settled is called."""
        self.declined = True

    def grant(self, price: float = 0.0) -> Grant:
        size = min(self.sink.size, self.offer.size)
        return Grant(size, self.payload_bytes, self.frames, self.started, price, self.refining)

    def take(self, header: FrameHeader, channel: Channel) -> None:
        """Read one DATA frame into the sink. Raises FrameError before a byte is written where it may not be."""
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
        """Check that what has come is what was promised, with the first COMMIT or a later one."""
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
