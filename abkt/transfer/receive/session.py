"""One connection, seen from the receiver: what a peer may say at which point, and nothing else."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from abkt.transfer.pieces import ByteSink
from abkt.transfer.protocol.channel import Channel, Keepalive
from abkt.transfer.protocol.frame import COMMITTED, MORE, FrameError, FrameHeader, FrameType
from abkt.transfer.protocol.handshake import welcome
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Abort, Ack, Commit, Grant, Hello, Offer
from abkt.transfer.receive.leases import Identity, Lease, Leases
from abkt.transfer.receive.received import Received
from abkt.transfer.transport import Connection, PeerError, PeerLost, PeerSilent

ACK_BYTES = 8 << 20
ACK_S = 0.05
MOST_REFINING = 64  # of one connection; beyond, the oldest end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decider:
    """Who says what happens with transfers; see Receiver."""

    accept: Callable[[str, Offer], ByteSink | None]
    on_commit: Callable[[Received], None]
    price: Callable[[int], float]
    on_refined: Callable[[Received, int], None] | None = None


class MemoryBell:
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


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """What the sessions of one receiver share."""

    hello: Hello
    key: Key | None
    decider: Decider
    memory: MemoryBell
    leases: Leases
    keepalive: Keepalive


class Session:
    """Serves one connection until it ends; `run` is a thread's whole life. A transfer is granted, then committed or aborted, never both.

    One is under way at a time; those that were committed and may be refined stay beside it. When such a one is not wanted any more, the
    peer is told, and what it sent before it heard is taken and thrown away.
    """

    def __init__(self, connection: Connection, node: ReceiverState) -> None:
        self.connection = connection
        self._node = node
        self._channel = Channel(connection, node.keepalive)
        self._peer = Hello(connection.peer, "")
        self._lease: Lease | None = None  # of the transfer that is under way
        self._refining: dict[int, Lease] = {}  # by transfer id
        self._declined: set[int] = set()  # transfer ids, until the peer has heard
        self._came_bytes = 0  # since an acknowledgement told the price
        self._told_s = 0.0

    def run(self) -> None:
        reason, broken = "the receiver failed", False
        try:
            self._peer = welcome(self._channel, self._node.hello, self._node.key)
            while True:
                self._next()
        except PeerError as error:
            reason, broken = str(error), isinstance(error, PeerLost | PeerSilent)
            self._tell_end(reason, broken)
        except FrameError as error:
            reason = str(error)
            log.warning("%s: %s; connection closed", self._channel.peer, reason)
            self._channel.abort(reason)
        except Exception:
            log.exception("%s: the receiver failed; connection closed", self._channel.peer)
            self._channel.abort(reason)
        finally:
            self.connection.close()
            for lease in filter(None, (self._lease, *self._refining.values())):
                self._node.leases.leave(lease, reason, keep=broken)

    def _tell_end(self, reason: str, broken: bool) -> None:
        """A peer that leaves between two transfers is no news."""
        if self._lease and self._lease.received:
            what = "is kept for a while" if broken and self._lease.lasting else "is dropped"
            log.warning("%s: %s; its transfer %d %s", self._channel.peer, reason, self._lease.received.transfer_id, what)
        elif self._channel.greeted_by_s < math.inf and "closed the connection" not in reason:
            log.warning("%s: %s; connection closed", self._channel.peer, reason)

    def _next(self) -> None:
        while not self._channel.arrived(self._channel.keepalive.tick_s):
            self._decline()
        header = self._channel.header()
        active = self._lease and self._lease.received
        behind = self._refining.get(header.transfer_id)
        if header.type in (FrameType.DATA, FrameType.COMMIT) and header.transfer_id in self._declined:
            self._drop(header)
        elif header.type in (FrameType.DATA, FrameType.COMMIT) and behind:
            self._refine(header, behind)
        elif header.type is FrameType.DATA and active:
            self._take(header, active)
        elif header.type is FrameType.OFFER and not active:
            self._offered(header, Offer.parse(self._channel.message(header)))
        elif header.type is FrameType.COMMIT and active:
            active.finish(header, Commit.parse(self._channel.message(header)))
            self._commit(active)
        else:
            self._aside(header)
        self._decline()

    def _aside(self, header: FrameHeader) -> None:
        """A peer may give up what it refines, and hears that this side has."""
        if header.type is not FrameType.ABORT or header.flags or header.transfer_id not in self._refining.keys() | self._declined:
            self._channel.aside(header)
            return
        Abort.parse(self._channel.message(header))
        self._declined.discard(header.transfer_id)
        if lease := self._refining.pop(header.transfer_id, None):
            self._node.leases.commit(lease)

    def _refine(self, header: FrameHeader, lease: Lease) -> None:
        received = lease.received
        assert received is not None
        if header.type is FrameType.DATA:
            self._take(header, received)
            return
        received.finish(header, Commit.parse(self._channel.message(header)))
        if self._node.decider.on_refined and not received.declined:
            self._node.decider.on_refined(received, received.cut)
        if not received.refining:
            del self._refining[header.transfer_id]
            self._node.leases.commit(lease)
        self._ack(received, COMMITTED)

    def _decline(self) -> None:
        """Tell the peer what is not wanted any more, or is more than this connection may have."""
        excess = len(self._refining) - MOST_REFINING
        for index, (transfer_id, lease) in enumerate(list(self._refining.items())):
            if index < excess or (lease.received and lease.received.declined):
                del self._refining[transfer_id]
                self._declined.add(transfer_id)
                self._node.leases.commit(lease)
                self._channel.abort("no better values are wanted", transfer_id, closing=False)

    def _drop(self, header: FrameHeader) -> None:
        """What the peer sent before it heard."""
        scratch = memoryview(bytearray(header.length))
        self._channel.payload(header, [scratch])
        if header.type is FrameType.COMMIT and not header.flags & MORE:
            self._declined.discard(header.transfer_id)

    def _take(self, header: FrameHeader, received: Received) -> None:
        """Not each frame is acknowledged: that only saves sending again, and tells the price."""
        received.take(header, self._channel)
        self._came_bytes += header.length
        if self._came_bytes >= ACK_BYTES or time.monotonic() - self._told_s >= ACK_S:
            self._ack(received)

    def _ack(self, received: Received, flags: int = 0) -> None:
        header = FrameHeader(FrameType.ACK, received.transfer_id, offset=received.payload_bytes, epoch=received.epoch, flags=flags)
        with suppress(PeerLost):  # what was sent before the end is still to be read, and says why
            self._channel.send(header, [Ack(self._price()).payload()])

    def _price(self) -> float:
        came_bytes, self._came_bytes = self._came_bytes, 0
        self._told_s = time.monotonic()
        return self._node.decider.price(came_bytes)

    def _commit(self, active: Received) -> None:
        """From here on it is delivered, whether or not the sender can still be told now."""
        lease, self._lease = self._lease, None
        assert lease is not None
        if active.refining:
            self._refining[active.transfer_id] = lease
            active.declined |= self._node.decider.on_refined is None
        else:
            self._node.leases.commit(lease)
        self._node.decider.on_commit(active)
        self._ack(active, COMMITTED)

    def _offered(self, header: FrameHeader, offer: Offer) -> None:
        offered_s = time.monotonic()
        if header.transfer_id in self._refining or header.transfer_id in self._declined:
            raise FrameError(f"transfer {header.transfer_id} was offered while another of this number is being refined")
        identity = Identity(self._peer.node, self._peer.instance, header.sequence, header.transfer_id)
        lease = self._node.leases.enter(identity, header.epoch, offer, self.connection)
        if lease.committed:
            self._grant(header, lease.committed)
            return
        if lease.received and lease.received.started:
            self._refining[header.transfer_id] = lease
            self._grant(header, lease.received.grant(self._price()))
            return
        self._lease = lease
        if not lease.received:
            try:
                sink = self._reserve(offer)
            except FrameError:
                raise
            except ValueError as error:
                self._node.leases.leave(lease, str(error), keep=False)
                self._lease = None
                self._channel.abort(str(error), header.transfer_id, closing=False)
                return
            lease.received = Received(self._peer.node, header.transfer_id, header.epoch, offer, sink, offered_s, granted_s=time.monotonic())
        self._grant(header, lease.received.grant(self._price()))

    def _grant(self, header: FrameHeader, grant: Grant) -> None:
        self._channel.send(FrameHeader(FrameType.GRANT, header.transfer_id, epoch=header.epoch), [grant.payload()])

    def _reserve(self, offer: Offer) -> ByteSink:
        """Ask until there is memory; raises PeerError if the sender leaves or does not want it any more."""
        while True:
            seen = self._node.memory.count
            sink = self._node.decider.accept(self._peer.node, offer)
            if sink is not None:
                return sink
            self._decline()
            self._node.memory.wait(seen, self._channel.keepalive.tick_s)
            while self._channel.arrived(0):
                self._aside(self._channel.header())
