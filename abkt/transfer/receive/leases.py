"""Which transfers of a receiver are under way, broken off and kept for a while, or delivered lately: so each is delivered once at most."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import FrameError, digest_of
from abkt.transfer.protocol.messages import Grant, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.transport import Connection

COMMITTED_CAP = 4096  # remembered at most, the oldest forgotten first

log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Transfer ids may come again; a sender's count of its transfers does not. Without an instance nothing is resumed."""

    node: str
    instance: str
    serial: int
    transfer_id: int


@dataclass(slots=True, eq=False)
class Lease:
    """One transfer from its offer on. connection: whose thread writes into its sink now; None: nobody does. received: from the grant to
    the end of all that may follow; committed: what an offer is answered with that comes after that."""

    identity: Identity
    offer: bytes  # its digest
    epoch: int
    connection: Connection | None
    received: Received | None = None
    committed: Grant | None = None
    reason: str = ""
    until_s: float = math.inf

    @property
    def lasting(self) -> bool:
        return bool(self.identity.instance)


class Leases:
    """Thread-safe. on_abort is called once for each transfer that was granted and will not be delivered, on_settled for each that was
    delivered and might have been refined, once nothing follows any more; by whoever finds that out."""

    def __init__(
        self,
        keepalive: Keepalive,
        on_abort: Callable[[Received, str], None],
        on_settled: Callable[[Received], None] = lambda received: None,
    ) -> None:
        self._keepalive = keepalive
        self._on_abort = on_abort
        self._on_settled = on_settled
        self._changed = threading.Condition()
        self._leases: dict[Identity, Lease] = {}

    def enter(self, identity: Identity, epoch: int, offer: Offer, connection: Connection) -> Lease:
        """The lease of an offer: a new one, or that of an earlier epoch, taken away from the connection that may still hold it.

        Raises FrameError if the epoch is no later one, or the offer another.
        """
        digest = digest_of([offer.payload()])
        if not identity.instance:
            return Lease(identity, digest, epoch, connection)
        with self._changed:
            held = self._leases.get(identity)
            if held and held.connection:
                self._check_later(held, epoch, digest)
                held.connection.abort()
                if not self._changed.wait_for(lambda: held.connection is None, self._keepalive.silence_s):
                    raise FrameError(f"transfer {identity.transfer_id} is still being written by its last connection")
            lease = self._leases.get(identity)
            if not lease:
                lease = self._leases[identity] = Lease(identity, digest, epoch, connection)
                return lease
            self._check_later(lease, epoch, digest)
            lease.epoch = epoch
            if not lease.committed:
                lease.connection, lease.until_s = connection, math.inf
            if lease.received:
                lease.received.epoch = epoch
            return lease

    def leave(self, lease: Lease, reason: str, keep: bool) -> None:
        """The connection has ended, and its thread writes no more. keep: what has come may be resumed for hold_s."""
        keep = keep and lease.lasting and lease.received is not None and self._keepalive.hold_s > 0
        lease.reason = reason
        if not keep and lease.received and lease.received.started:
            self.commit(lease)
            return
        if not keep:
            self._end(lease)  # first: whoever waits for the connection to let go may ask for the same memory again
        with self._changed:
            lease.connection = None
            if keep:
                lease.until_s = time.monotonic() + self._keepalive.hold_s
            elif lease.lasting:
                del self._leases[lease.identity]
            self._changed.notify_all()

    def commit(self, lease: Lease) -> None:
        """It is delivered, and nothing follows any more; remembered for as long as its sender might ask."""
        with self._changed:
            received = self._remember(lease)
        self._settle(received)

    def sweep(self, now_s: float) -> None:
        """End what nobody has resumed in time, and what is not wanted any more."""
        with self._changed:
            left = [lease for lease in self._leases.values() if not lease.connection]
            over = [lease for lease in left if now_s >= lease.until_s or (lease.received and lease.received.declined)]
            settled = [self._remember(lease) for lease in over if lease.received and lease.received.started]
            ended = [lease for lease in over if not lease.committed or now_s >= lease.until_s]
            for lease in ended:
                del self._leases[lease.identity]
        for received in settled:
            self._settle(received)
        for lease in ended:
            self._end(lease)

    def close(self) -> None:
        """After the last connection."""
        self.sweep(math.inf)

    def _check_later(self, lease: Lease, epoch: int, offer: bytes) -> None:
        if epoch <= lease.epoch:
            raise FrameError(f"transfer {lease.identity.transfer_id} was offered with epoch {lease.epoch} already, now with {epoch}")
        if offer != lease.offer:
            raise FrameError(f"transfer {lease.identity.transfer_id}: the offer of epoch {epoch} is not that of epoch {lease.epoch}")

    def _remember(self, lease: Lease) -> Received:
        received = lease.received
        assert received is not None
        received.refining = False
        lease.connection, lease.committed, lease.received = None, received.grant(), None
        lease.until_s = time.monotonic() + self._keepalive.silence_s + self._keepalive.resume_s + self._keepalive.hold_s
        if len(self._leases) > COMMITTED_CAP:
            for old in [each for each in self._leases.values() if each.committed][:-COMMITTED_CAP]:
                del self._leases[old.identity]
        self._changed.notify_all()
        return received

    def _settle(self, received: Received) -> None:
        if received.refinable:
            try:
                self._on_settled(received)
            except Exception:
                log.exception("what refined transfer %d could not be released", received.transfer_id)

    def _end(self, lease: Lease) -> None:
        if lease.received:
            try:
                self._on_abort(lease.received, lease.reason)
            except Exception:
                log.exception("transfer %d could not be released", lease.identity.transfer_id)
