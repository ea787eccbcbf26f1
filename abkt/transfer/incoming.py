"""One connection, seen from the receiver: what a peer may say at which point, and nothing else."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from abkt.transfer.channel import Channel, Keepalive
from abkt.transfer.frame import COMMITTED, FrameError, FrameType, Header
from abkt.transfer.handshake import welcome
from abkt.transfer.key import Key
from abkt.transfer.leases import Identity, Lease, Leases
from abkt.transfer.messages import Ack, Commit, Grant, Hello, Offer
from abkt.transfer.pieces import ByteSink
from abkt.transfer.received import Received
from abkt.transfer.transport import Connection, PeerError, PeerLost, PeerSilent

ACK_BYTES = 8 << 20
ACK_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decider:
    """Who says what happens with transfers; see Receiver."""

    accept: Callable[[str, Offer], ByteSink | None]
    on_commit: Callable[[Received], None]
    price: Callable[[], float]


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


@dataclass(frozen=True, slots=True)
class Node:
    """What the sessions of one receiver share."""

    hello: Hello
    key: Key | None
    decider: Decider
    memory: Memory
    leases: Leases
    keepalive: Keepalive


class Session:
    """Serves one connection until it ends; `run` is a thread's whole life. A transfer is granted, then committed or aborted, never both."""

    def __init__(self, connection: Connection, node: Node) -> None:
        self.connection = connection
        self._node = node
        self._channel = Channel(connection, node.keepalive)
        self._peer = Hello(connection.peer, "")
        self._lease: Lease | None = None  # of the transfer that is under way
        self._told_bytes = 0
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
            if self._lease:
                self._node.leases.leave(self._lease, reason, keep=broken)

    def _tell_end(self, reason: str, broken: bool) -> None:
        """A peer that leaves between two transfers is no news."""
        if self._lease and self._lease.received:
            what = "is kept for a while" if broken and self._lease.lasting else "is dropped"
            log.warning("%s: %s; its transfer %d %s", self._channel.peer, reason, self._lease.received.transfer_id, what)
        elif self._channel.greeted_by_s < math.inf and "closed the connection" not in reason:
            log.warning("%s: %s; connection closed", self._channel.peer, reason)

    def _next(self) -> None:
        header = self._channel.header()
        active = self._lease and self._lease.received
        if header.type is FrameType.DATA and active:
            active.take(header, self._channel)
            self._acknowledge(active)
        elif header.type is FrameType.OFFER and not active:
            self._offered(header, Offer.parse(self._channel.message(header)))
        elif header.type is FrameType.COMMIT and active:
            active.finish(header, Commit.parse(self._channel.message(header)))
            self._commit(active)
        else:
            self._channel.aside(header)

    def _acknowledge(self, active: Received) -> None:
        """Not each frame: an acknowledgement only saves sending again, and tells the price."""
        if active.payload_bytes - self._told_bytes >= ACK_BYTES or time.monotonic() - self._told_s >= ACK_S:
            self._ack(active)

    def _ack(self, active: Received, flags: int = 0) -> None:
        self._told_bytes, self._told_s = active.payload_bytes, time.monotonic()
        header = Header(FrameType.ACK, active.transfer_id, offset=active.payload_bytes, epoch=active.epoch, flags=flags)
        with suppress(PeerLost):  # what was sent before the end is still to be read, and says why
            self._channel.send(header, [Ack(self._node.decider.price()).payload()])

    def _commit(self, active: Received) -> None:
        """From here on it is delivered, whether or not the sender can still be told now."""
        assert self._lease is not None
        self._node.leases.commit(self._lease)
        self._lease = None
        self._node.decider.on_commit(active)
        self._ack(active, COMMITTED)

    def _offered(self, header: Header, offer: Offer) -> None:
        offered_s = time.monotonic()
        identity = Identity(self._peer.node, self._peer.instance, header.sequence, header.transfer_id)
        lease = self._node.leases.enter(identity, header.epoch, offer, self.connection)
        if lease.committed:
            self._grant(header, lease.committed)
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
        self._told_bytes, self._told_s = lease.received.payload_bytes, time.monotonic()
        self._grant(header, lease.received.grant(price=self._node.decider.price()))

    def _grant(self, header: Header, grant: Grant) -> None:
        self._channel.send(Header(FrameType.GRANT, header.transfer_id, epoch=header.epoch), [grant.payload()])

    def _reserve(self, offer: Offer) -> ByteSink:
        """Ask until there is memory; raises PeerError if the sender leaves or does not want it any more."""
        while True:
            seen = self._node.memory.count
            sink = self._node.decider.accept(self._peer.node, offer)
            if sink is not None:
                return sink
            self._node.memory.wait(seen, self._channel.keepalive.tick_s)
            while self._channel.arrived(0):
                self._channel.aside(self._channel.header())
