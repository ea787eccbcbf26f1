"""The sending side of one peer: a thread, a first-come-first-served queue of transfers, one connection that is made when needed."""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from abkt.transfer.link import PacedLink
from abkt.transfer.protocol.channel import Channel, Keepalive
from abkt.transfer.protocol.frame import FrameError
from abkt.transfer.protocol.handshake import client_handshake
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import INSTANCE_BYTES, Hello
from abkt.transfer.send.outgoing import Cancelled, FrameSize, Outgoing, Sent
from abkt.transfer.send.refinement import RefinementSender
from abkt.transfer.send.transfer import OutgoingTransfer
from abkt.transfer.transport import PeerError, PeerLost, PeerSilent, Refused, Transport

RECONNECT_S = (0.05, 0.5)  # first and longest pause before connecting again

log = logging.getLogger(__name__)


class Sender:
    """Sends transfers to one peer, one after another. Submit transfers, then close it.

    A transfer that fails gives a Sent with an error, and the next one is tried over a new connection. If the connection turns out to be
    dead before the grant, the transfer is tried once more. If it breaks after the grant, the transfer goes on where it was, provided the
    peer can be reached again within keepalive.resume_s. A transfer that the peer has refused or aborted is not resumed.
    Refinement of a transfer (refinement.py) runs after its future has a result, while no other transfer waits.

    Parameters
    ----------
    transport : Transport
        Makes the connection.
    address : str
        Address of the peer's Receiver.
    hello : Hello
        Name of this node and its layout, which must equal the receiver's.
    link : PacedLink, optional
        Paces what is sent; several senders may share one. The default does not pace.
    keepalive : Keepalive, optional
        Time limits of the connection.
    key : Key, optional
        Pre-shared key; the receiver must have the same one.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        hello: Hello,
        link: PacedLink | None = None,
        keepalive: Keepalive | None = None,
        *,
        key: Key | None = None,
    ) -> None:
        self.link = link or PacedLink()
        self._transport = transport
        self._address = address
        self._hello = replace(hello, instance=secrets.token_hex(INSTANCE_BYTES))
        self._key = key
        self._keepalive = keepalive or Keepalive()
        self._count = 0
        self._queue: queue.SimpleQueue[tuple[Outgoing, Future[Sent]] | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._size = FrameSize()
        self._refinements = RefinementSender()
        self._closing = threading.Event()
        self._submit_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"send to {address}", daemon=True)
        self._thread.start()

    def submit(self, outgoing: Outgoing) -> Future[Sent]:
        """Queue a transfer.

        Returns
        -------
        Future[Sent]
            Its result is set in the sender's thread, so callbacks of the future must be quick. A failed transfer is a result with an
            error, not an exception.

        Raises
        ------
        ValueError
            If the sender is closed.
        """
        future: Future[Sent] = Future()
        with self._submit_lock:
            if self._closing.is_set():
                raise ValueError(f"the sender to {self._address} is closed")
            self._queue.put((outgoing, future))
        return future

    def close(self) -> None:
        """End now: transfers that are under way or wait fail with an error. To send them all, wait for their futures first."""
        with self._submit_lock:  # so that every transfer submitted before gets its result
            self._closing.set()
            self._queue.put(None)
        self._thread.join(2 * self._keepalive.tick_s)  # time to send the peer an ABORT
        if channel := self._channel:
            channel.connection.abort()
        self._thread.join()

    def _run(self) -> None:
        busy = False  # whether a refinement has more to send at once
        while not self._closing.is_set():
            try:
                item = self._queue.get(timeout=0.0 if busy else self._keepalive.tick_s)
            except queue.Empty:
                busy = self._between_transfers(self._refine)
                continue
            if item and item[1].set_running_or_notify_cancel():
                if self._refinements:
                    self._between_transfers(partial(self._pause_refinement, item[0]))
                item[1].set_result(self._send(item[0]))
            busy = bool(self._refinements)
        self._disconnect("the sender was closed" if self._refinements else "")
        self._refinements.drop("the sender was closed")
        while not self._queue.empty():
            item = self._queue.get()
            if item and item[1].set_running_or_notify_cancel():
                item[1].set_result(Sent(item[0].transfer_id, error="the sender was closed"))

    def _send(self, outgoing: Outgoing) -> Sent:
        """Run one transfer. Every failure becomes the error of its Sent."""
        sent = Sent(outgoing.transfer_id)
        try:
            transfer = OutgoingTransfer(outgoing, sent, self.link, self._size, self._count, self._closing, self._refinements)
            self._run_with_retries(transfer)
            if sent.refining and self._channel:
                self._refinements.add(transfer, self._channel)
        except (PeerError, FrameError, Cancelled) as error:
            sent.error = "the sender was closed" if self._closing.is_set() else str(error)
        except Exception as error:
            log.exception("transfer %d to %s failed on this side", outgoing.transfer_id, self._address)
            sent.error = f"{type(error).__name__}: {error}"
            self._disconnect(sent.error)
        self._count += 1
        return replace(sent, refining=sent.refining and not sent.error)

    def _run_with_retries(self, transfer: OutgoingTransfer) -> None:
        """Run the transfer and resume it after breaks, until resume_s has passed since a break without any new byte held by the peer."""
        sent, reused = transfer.sent, self._channel is not None
        until_s, held_bytes, tries, broken = -math.inf, -1, 0, ""
        while True:
            try:
                self._attempt(transfer)
                return
            except (PeerLost, PeerSilent) as error:
                if self._closing.is_set():
                    raise
                if math.isnan(sent.granted_s):
                    if sent.retries or not reused or isinstance(error, PeerSilent):
                        raise
                    sent.retries = 1
                    continue
                if sent.held_bytes > held_bytes:
                    held_bytes, tries, broken = sent.held_bytes, 0, str(error)
                    until_s = time.monotonic() + self._keepalive.resume_s
                    log.warning("%s; transfer %d is resumed", error, sent.transfer_id)
                if time.monotonic() >= until_s:
                    again = "" if str(error) == broken else f", then: {error}"
                    raise PeerLost(f"{broken}; not resumed within {self._keepalive.resume_s:g} s{again}") from None
            transfer.check_cancel()
            self._closing.wait(min(RECONNECT_S[0] * 2**tries, RECONNECT_S[1]))
            tries += 1

    def _attempt(self, transfer: OutgoingTransfer) -> None:
        """Run the transfer once, over the present connection or a new one. An error of the connection closes it."""
        try:
            transfer.run(self._channel or self._connect())
        except Refused:
            raise
        except PeerLost as error:
            reason = self._channel.abort_reason() if self._channel else ""
            self._disconnect()
            raise PeerError(reason) if reason else error from None
        except PeerSilent:
            self._disconnect()  # without an ABORT, which a silent peer would not read
            raise
        except (PeerError, FrameError, Cancelled) as error:
            self._disconnect(str(error))
            raise

    def _connect(self) -> Channel:
        """Connect and do the handshake. Raises PeerError or FrameError if it fails."""
        connection = self._transport.connect(self._address, self._keepalive.silence_s, keyed=self._key is not None)
        channel = self._channel = Channel(connection, self._keepalive)
        if self._closing.is_set():
            raise PeerLost("closed")
        self._size.most_bytes = connection.frame_bytes
        client_handshake(channel, self._hello, self._key)
        return channel

    def _between_transfers(self, work: Callable[[], bool]) -> bool:
        """Read what has come and keep the connection alive, then do `work`. Returns whether `work` has more to do at once."""
        try:
            while self._channel and self._channel.arrived(0):
                header = self._channel.header()
                if not self._refinements.take(header, self._channel):
                    self._channel.control_frame(header)
            return work()
        except (PeerLost, PeerSilent) as error:
            if not self._closing.is_set():
                log.warning("%s: %s; the next transfer will connect again", self._address, error)
            self._disconnect()
            return bool(self._refinements)
        except (PeerError, FrameError, Cancelled) as error:
            if not self._closing.is_set():
                log.warning("%s: %s; the next transfer will connect again", self._address, error)
            self._disconnect("" if isinstance(error, PeerError) else str(error))
            self._refinements.drop(str(error))
        except Exception as error:
            log.exception("refinement of transfers to %s failed on this side", self._address)
            self._disconnect(f"{type(error).__name__}: {error}")
            self._refinements.drop(f"{type(error).__name__}: {error}")
        return False

    def _refine(self) -> bool:
        """Send one frame of a refinement; after a break over a new connection, if one can be made."""
        if not self._refinements:
            return False
        if not self._channel:
            try:
                self._connect()
            except PeerError as error:
                self._disconnect()
                self._refinements.drop(f"not resumed: {error}")
                return False
        assert self._channel is not None
        return self._refinements.step(self._channel)

    def _pause_refinement(self, outgoing: Outgoing) -> bool:
        """Before a new transfer: commit what is complete, and end the refinement of an earlier transfer with the same id."""
        if self._channel:
            self._refinements.pause(self._channel)
            self._refinements.clear(outgoing.transfer_id, self._channel)
        return False

    def _disconnect(self, reason: str = "") -> None:
        if channel := self._channel:
            if reason:
                channel.abort(reason)
            self._channel = None
            channel.connection.close()
