"""The transfers of a receiver: under way, interrupted and kept for resuming, or delivered recently. Each is delivered at most once."""

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

COMMITTED_CAP = 4096  # delivered transfers that are remembered; the oldest are forgotten first

log = logging.getLogger(__name__)


class TransferIdentity(NamedTuple):
    """Identifies a transfer over reconnects. `serial` is the sender's count of its transfers, since transfer ids may be used again.

    If `instance` is empty the transfer cannot be resumed.
    """

    node: str
    instance: str
    serial: int
    transfer_id: int


@dataclass(slots=True, eq=False)
class Lease:
    """One transfer from its offer until it is forgotten.

    Attributes
    ----------
    offer : bytes
        Digest of the offer, which must be the same in every epoch.
    connection : Connection or None
        The connection whose thread writes into the sink; None if no thread does.
    received : Received or None
        The transfer, from its grant to the end of its refinement.
    committed : Grant or None
        Set once the transfer is committed and its refinement has ended: the answer if its offer comes again.
    until_s : float
        Time (time.monotonic) at which an interrupted or delivered transfer is forgotten.
    """

    identity: TransferIdentity
    offer: bytes
    epoch: int
    connection: Connection | None
    received: Received | None = None
    committed: Grant | None = None
    reason: str = ""
    until_s: float = math.inf

    @property
    def resumable(self) -> bool:
        return bool(self.identity.instance)


class Leases:
    """All leases of a receiver. Thread-safe.

    on_abort is called once for each transfer that was granted and will not be delivered. on_settled is called once for each delivered
    transfer that could be refined, when its refinement has ended. Both are called in the thread that detects it.
    """

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
        self._leases: dict[TransferIdentity, Lease] = {}

    def enter(self, identity: TransferIdentity, epoch: int, offer: Offer, connection: Connection) -> Lease:
        """The lease for an offer: a new one, or that of an earlier epoch. A connection that still holds the latter is aborted first.

        Raises FrameError if the epoch is not newer or the offer differs.
        """
        digest = digest_of([offer.payload()])
        if not identity.instance:
            return Lease(identity, digest, epoch, connection)
        with self._changed:
            held = self._leases.get(identity)
            if held and held.connection:
                self._check_newer(held, epoch, digest)
                held.connection.abort()
                if not self._changed.wait_for(lambda: held.connection is None, self._keepalive.silence_s):
                    raise FrameError(f"transfer {identity.transfer_id} is still being written by its last connection")
            lease = self._leases.get(identity)
            if not lease:
                lease = self._leases[identity] = Lease(identity, digest, epoch, connection)
                return lease
            self._check_newer(lease, epoch, digest)
            lease.epoch = epoch
            if not lease.committed:
                lease.connection, lease.until_s = connection, math.inf
            if lease.received:
                lease.received.epoch = epoch
            return lease

    def leave(self, lease: Lease, reason: str, keep: bool) -> None:
        """Release the lease of a connection that has ended and whose thread writes no more. keep: the transfer may be resumed for
        hold_s."""
        keep = keep and lease.resumable and lease.received is not None and self._keepalive.hold_s > 0
        lease.reason = reason
        if not keep and lease.received and lease.received.started:
            self.commit(lease)
            return
        if not keep:
            self._abort(lease)  # before the notification: the thread that it wakes may reserve the same memory
        with self._changed:
            lease.connection = None
            if keep:
                lease.until_s = time.monotonic() + self._keepalive.hold_s
            elif lease.resumable:
                del self._leases[lease.identity]
            self._changed.notify_all()

    def commit(self, lease: Lease) -> None:
        """End a transfer whose bytes and refinement are complete. It is remembered as long as its sender may ask for the acknowledgement
        again."""
        with self._changed:
            received = self._remember(lease)
        self._settle(received)

    def sweep(self, now_s: float) -> None:
        """End the transfers that were not resumed in time and the refinements that were declined; forget old ones."""
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
            self._abort(lease)

    def close(self) -> None:
        """End everything. Called after the last connection has ended."""
        self.sweep(math.inf)

    def _check_newer(self, lease: Lease, epoch: int, offer: bytes) -> None:
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
                log.exception("transfer %d: on_settled failed", received.transfer_id)

    def _abort(self, lease: Lease) -> None:
        if lease.received:
            try:
                self._on_abort(lease.received, lease.reason)
            except Exception:
                log.exception("transfer %d: on_abort failed", lease.identity.transfer_id)
