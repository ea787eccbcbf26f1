"""One connection, seen from the receiver: what a peer may say at which point, and nothing else."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from abkt.transfer.channel import Channel, Keepalive
from abkt.transfer.frame import FrameError, FrameType, Header, digest_of
from abkt.transfer.messages import Commit, Grant, Hello, Offer
from abkt.transfer.pieces import ByteSink
from abkt.transfer.transport import Connection, PeerError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Received:
    """A transfer as its receiver sees it; complete and verified once it is passed to on_commit. Times are CLOCK_MONOTONIC.

    payload_bytes have come into the sink. cut is what they amount to: bytes up to offer.ends[cut] count, any after that are the start of a
    band that was given up.
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
    payload_bytes: int = 0
    cut: int = -1
    _tags: list[bytes] = field(default_factory=list)

    def take(self, header: Header, channel: Channel) -> None:
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

    def finish(self, header: Header, commit: Commit) -> None:
        """Check that what has come is what was promised."""
        self._check_turn(header)
        if commit.size != self.payload_bytes or commit.digest != digest_of(self._tags).hex():
            raise FrameError(f"COMMIT of {commit.size} bytes does not fit the {self.payload_bytes} that have come")
        if commit.cut != self.offer.cut_within(commit.size):
            raise FrameError(f"COMMIT of cut {commit.cut}, but {commit.size} bytes complete cut {self.offer.cut_within(commit.size)}")
        self.cut = commit.cut
        self.committed_s = time.monotonic()

    def _check_turn(self, header: Header) -> None:
        if (header.transfer_id, header.epoch) != (self.transfer_id, self.epoch):
            raise FrameError(f"{header.type.name} frame of transfer {header.transfer_id}, epoch {header.epoch}, which was not granted")
        if header.sequence != len(self._tags):
            raise FrameError(
                f"{header.type.name} frame {header.sequence} of transfer {self.transfer_id} came when {len(self._tags)} was due"
            )


@dataclass(frozen=True, slots=True)
class Decider:
    """Who says what happens with transfers; see Receiver."""

    accept: Callable[[str, Offer], ByteSink | None]
    on_commit: Callable[[Received], None]
    on_abort: Callable[[Received, str], None]


class Memory:
    """A bell that wakes the sessions whose offers wait for memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.count = 0

    def freed(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.count != seen, timeout_s)


class Session:
    """Serves one connection until it ends; `run` is a thread's whole life. A transfer is granted, then committed or aborted, never both."""

    def __init__(self, connection: Connection, hello: Hello, decider: Decider, memory: Memory, keepalive: Keepalive) -> None:
        self.connection = connection
        self._channel = Channel(connection, keepalive)
        self._hello = hello
        self._decider = decider
        self._memory = memory
        self._active: Received | None = None

    def run(self) -> None:
        reason = "the receiver failed"
        try:
            self._greet()
            while True:
                self._next()
        except PeerError as error:
            reason = str(error)
            if self._active:
                log.warning("%s: %s; its transfer %d is dropped", self._channel.peer, reason, self._active.transfer_id)
        except FrameError as error:
            reason = str(error)
            log.warning("%s: %s; connection closed", self._channel.peer, reason)
            self._channel.abort(reason)
        except Exception:
            log.exception("%s: the receiver failed; connection closed", self._channel.peer)
            self._channel.abort(reason)
        finally:
            self.connection.close()
            if self._active:
                self._decider.on_abort(self._active, reason)

    def _greet(self) -> None:
        hello = Hello.parse(self._channel.expect(FrameType.HELLO)[1])
        if hello.layout != self._hello.layout:
            raise FrameError(
                f"{hello.node} has layout {hello.layout!r}, {self._hello.node} has {self._hello.layout!r}; they must be the same"
            )
        self._channel.peer = hello.node
        self._channel.send(Header(FrameType.HELLO), [self._hello.payload()])

    def _next(self) -> None:
        header = self._channel.header()
        active = self._active
        if header.type is FrameType.DATA and active:
            active.take(header, self._channel)
        elif header.type is FrameType.OFFER and not active:
            self._offered(header, Offer.parse(self._channel.message(header)))
        elif header.type is FrameType.COMMIT and active:
            active.finish(header, Commit.parse(self._channel.message(header)))
            self._channel.send(Header(FrameType.ACK, active.transfer_id, offset=active.payload_bytes, epoch=active.epoch))
            self._active = None
            self._decider.on_commit(active)
        else:
            self._channel.aside(header)

    def _offered(self, header: Header, offer: Offer) -> None:
        offered_s = time.monotonic()
        try:
            sink = self._reserve(offer)
        except FrameError:
            raise
        except ValueError as error:
            self._channel.abort(str(error), header.transfer_id, closing=False)
            return
        peer = self._channel.peer
        self._active = Received(peer, header.transfer_id, header.epoch, offer, sink, offered_s, time.monotonic())
        grant = Grant(min(sink.size, offer.size))
        self._channel.send(Header(FrameType.GRANT, header.transfer_id, epoch=header.epoch), [grant.payload()])

    def _reserve(self, offer: Offer) -> ByteSink:
        """Ask until there is memory; raises PeerError if the sender leaves or does not want it any more."""
        while True:
            seen = self._memory.count
            sink = self._decider.accept(self._channel.peer, offer)
            if sink is not None:
                return sink
            self._memory.wait(seen, self._channel.keepalive.tick_s)
            while self._channel.arrived(0):
                self._channel.aside(self._channel.header())
