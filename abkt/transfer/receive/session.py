"""One connection as the receiver serves it: which frames a peer may send at which point."""

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
from abkt.transfer.protocol.handshake import server_handshake
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Abort, Ack, Commit, Grant, Hello, Offer
from abkt.transfer.receive.leases import Lease, Leases, TransferIdentity
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.visitor_log import VisitorLog
from abkt.transfer.transport import Connection, PeerError, PeerLost, PeerSilent

ACK_BYTES = 8 << 20  # an ACK of progress is sent after this many bytes
ACK_S = 0.05  # or after this time
MOST_REFINING = 64  # transfers that one connection may refine at a time; beyond that the oldest refinements end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReceiverCallbacks:
    """The callbacks of a Receiver, which describes them."""

    accept: Callable[[str, Offer], ByteSink | None]
    on_commit: Callable[[Received], None]
    price: Callable[[int], float]
    on_refined: Callable[[Received, int], None] | None = None


class MemorySignal:
    """Wakes the sessions whose offers wait for memory. count: how often memory has been freed."""

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
class SessionContext:
    """What all sessions of one receiver share."""

    hello: Hello
    key: Key | None
    callbacks: ReceiverCallbacks
    memory: MemorySignal
    leases: Leases
    keepalive: Keepalive
    visitor_log: VisitorLog
    greeted: Callable[[Session], None]  # raises FrameError if a peer that has completed the handshake may not stay


class Session:
    """Serves one connection until it ends; `run` is the body of its thread. A granted transfer is committed or aborted, never both.

    One transfer is under way at a time. Committed transfers that are being refined stay open beside it. When refinement of one is declined,
    the peer is told with an ABORT, and the frames that it sent before it read the ABORT are read and discarded.
    """

    def __init__(self, connection: Connection, context: SessionContext) -> None:
        self.connection = connection
        self._context = context
        self._channel = Channel(connection, context.keepalive)
        self._peer = Hello(connection.peer, "")
        self._lease: Lease | None = None  # of the transfer that is under way
        self._refining: dict[int, Lease] = {}  # by transfer id
        self._declined: set[int] = set()  # ids of declined transfers whose peer has not answered yet
        self._received_bytes = 0  # since the last acknowledgement
        self._last_ack_s = 0.0

    def run(self) -> None:
        reason, broken = "the receiver failed", False
        try:
            self._peer = server_handshake(self._channel, self._context.hello, self._context.key)
            self._context.greeted(self)
            while True:
                self._next()
        except PeerError as error:
            reason, broken = str(error), isinstance(error, PeerLost | PeerSilent)
            self._log_end(reason, broken)
        except FrameError as error:
            reason = str(error)
            self._log_refused(reason)
            self._channel.abort(reason)
        except Exception:
            log.exception("%s: the receiver failed; connection closed", self._channel.peer)
            self._channel.abort(reason)
        finally:
            self.connection.close()
            for lease in filter(None, (self._lease, *self._refining.values())):
                self._context.leases.leave(lease, reason, keep=broken)

    def _log_end(self, reason: str, broken: bool) -> None:
        """Log the end of the connection, unless the peer closed it between two transfers."""
        if self._lease and self._lease.received:
            what = "is kept for a while" if broken and self._lease.resumable else "is dropped"
            log.warning("%s: %s; its transfer %d %s", self._channel.peer, reason, self._lease.received.transfer_id, what)
        elif self._channel.handshake_deadline_s < math.inf and "closed the connection" not in reason:
            self._log_refused(reason)

    def _log_refused(self, reason: str) -> None:
        """Log why this side ends the connection. Before the handshake the peer may be anyone, who must not fill the log."""
        if self._channel.handshake_deadline_s < math.inf:
            self._context.visitor_log.add(self._channel.peer, reason)
        else:
            log.warning("%s: %s; connection closed", self._channel.peer, reason)

    def _next(self) -> None:
        """Wait for a frame and handle it."""
        while not self._channel.arrived(self._channel.keepalive.tick_s):
            self._send_declines()
        header = self._channel.header()
        active = self._lease and self._lease.received
        refining = self._refining.get(header.transfer_id)
        if header.type in (FrameType.DATA, FrameType.COMMIT) and header.transfer_id in self._declined:
            self._discard(header)
        elif header.type in (FrameType.DATA, FrameType.COMMIT) and refining:
            self._refine(header, refining)
        elif header.type is FrameType.DATA and active:
            self._take(header, active)
        elif header.type is FrameType.OFFER and not active:
            self._offered(header, Offer.parse(self._channel.message(header)))
        elif header.type is FrameType.COMMIT and active:
            active.finish(header, Commit.parse(self._channel.message(header)))
            self._commit(active)
        else:
            self._unexpected(header)
        self._send_declines()

    def _unexpected(self, header: FrameHeader) -> None:
        """Handle a PING, an ABORT of a refinement or its answer; any other frame raises."""
        if header.type is not FrameType.ABORT or header.flags or header.transfer_id not in self._refining.keys() | self._declined:
            self._channel.control_frame(header)
            return
        Abort.parse(self._channel.message(header))
        self._declined.discard(header.transfer_id)
        if lease := self._refining.pop(header.transfer_id, None):
            self._context.leases.commit(lease)

    def _refine(self, header: FrameHeader, lease: Lease) -> None:
        """Handle a DATA or COMMIT frame of a transfer that is being refined."""
        received = lease.received
        assert received is not None
        if header.type is FrameType.DATA:
            self._take(header, received)
            return
        received.finish(header, Commit.parse(self._channel.message(header)))
        if self._context.callbacks.on_refined and not received.declined:
            self._context.callbacks.on_refined(received, received.cut)
        if not received.refining:
            del self._refining[header.transfer_id]
            self._context.leases.commit(lease)
        self._ack(received, COMMITTED)

    def _send_declines(self) -> None:
        """End the refinements that were declined, and the oldest if there are too many; tell the peer."""
        excess = len(self._refining) - MOST_REFINING
        for index, (transfer_id, lease) in enumerate(list(self._refining.items())):
            if index < excess or (lease.received and lease.received.declined):
                del self._refining[transfer_id]
                self._declined.add(transfer_id)
                self._context.leases.commit(lease)
                self._channel.abort("no further refinement is wanted", transfer_id, closing=False)

    def _discard(self, header: FrameHeader) -> None:
        """Read a frame that the peer sent before it knew that the refinement was declined."""
        scratch = memoryview(bytearray(header.length))
        self._channel.payload(header, [scratch])
        if header.type is FrameType.COMMIT and not header.flags & MORE:
            self._declined.discard(header.transfer_id)

    def _take(self, header: FrameHeader, received: Received) -> None:
        """Read a DATA frame. Progress is acknowledged now and then; such an ACK only reports the bytes held, and the price."""
        received.take(header, self._channel)
        self._received_bytes += header.length
        if self._received_bytes >= ACK_BYTES or time.monotonic() - self._last_ack_s >= ACK_S:
            self._ack(received)

    def _ack(self, received: Received, flags: int = 0) -> None:
        header = FrameHeader(FrameType.ACK, received.transfer_id, offset=received.payload_bytes, epoch=received.epoch, flags=flags)
        with suppress(PeerLost):  # frames that the peer sent before it left are still to be read, and may say why it left
            self._channel.send(header, [Ack(self._price()).payload()])

    def _price(self) -> float:
        received_bytes, self._received_bytes = self._received_bytes, 0
        self._last_ack_s = time.monotonic()
        return self._context.callbacks.price(received_bytes)

    def _commit(self, active: Received) -> None:
        """Deliver the transfer. It counts as delivered even if the sender cannot be told now."""
        lease, self._lease = self._lease, None
        assert lease is not None
        if active.refining:
            self._refining[active.transfer_id] = lease
            active.declined |= self._context.callbacks.on_refined is None
        else:
            self._context.leases.commit(lease)
        self._context.callbacks.on_commit(active)
        self._ack(active, COMMITTED)

    def _offered(self, header: FrameHeader, offer: Offer) -> None:
        """Answer an offer: a new transfer, one that is resumed, or one whose acknowledgement was lost."""
        offered_s = time.monotonic()
        if header.transfer_id in self._refining or header.transfer_id in self._declined:
            raise FrameError(f"transfer {header.transfer_id} was offered while another of this id is being refined")
        identity = TransferIdentity(self._peer.node, self._peer.instance, header.sequence, header.transfer_id)
        lease = self._context.leases.enter(identity, header.epoch, offer, self.connection)
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
                self._context.leases.leave(lease, str(error), keep=False)
                self._lease = None
                self._channel.abort(str(error), header.transfer_id, closing=False)
                return
            lease.received = Received(self._peer.node, header.transfer_id, header.epoch, offer, sink, offered_s, granted_s=time.monotonic())
        self._grant(header, lease.received.grant(self._price()))

    def _grant(self, header: FrameHeader, grant: Grant) -> None:
        self._channel.send(FrameHeader(FrameType.GRANT, header.transfer_id, epoch=header.epoch), [grant.payload()])

    def _reserve(self, offer: Offer) -> ByteSink:
        """Call `accept` until there is memory. Raises PeerError if the sender leaves or cancels."""
        while True:
            seen = self._context.memory.count
            sink = self._context.callbacks.accept(self._peer.node, offer)
            if sink is not None:
                return sink
            self._send_declines()
            self._context.memory.wait(seen, self._channel.keepalive.tick_s)
            while self._channel.arrived(0):
                self._unexpected(self._channel.header())
