"""The sending end of one peer: a thread, a queue of transfers in the order they came, one connection that is made when needed."""

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
from abkt.transfer.protocol.handshake import greet
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import INSTANCE_BYTES, Hello
from abkt.transfer.send.outgoing import Cancelled, FrameSize, Outgoing, Sent
from abkt.transfer.send.refinement import RefinementSender
from abkt.transfer.send.transfer import Sending
from abkt.transfer.transport import PeerError, PeerLost, PeerSilent, Refused, Transport

RECONNECT_S = (0.05, 0.5)

log = logging.getLogger(__name__)


class Sender:
    """submit transfers, then close. hello: who this side is and what layout it has; the peer must have the same, and the same key.

    A transfer that fails gives a Sent with an error; the next one is tried on a new connection. One whose connection turns out to be
    dead before anything was granted is tried again once; one whose connection breaks after that goes on where it was, if the peer can be
    reached again within keepalive.resume_s. Nothing is resumed that the peer has refused or aborted. What follows behind the start of a
    transfer (behind.py) goes on while no other waits, after its future has its result.
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
        self._behind = RefinementSender()
        self._closing = threading.Event()
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"send to {address}", daemon=True)
        self._thread.start()

    def submit(self, outgoing: Outgoing) -> Future[Sent]:
        """The future's result comes from the sender's thread: callbacks must be quick. Its source must hold still until then."""
        future: Future[Sent] = Future()
        with self._door:
            if self._closing.is_set():
                raise ValueError(f"the sender to {self._address} is closed")
            self._queue.put((outgoing, future))
        return future

    def close(self) -> None:
        """End now: the transfer that is on its way and those that wait fail with an error. Wait for the futures first to send them all."""
        with self._door:  # whatever was submitted before will get its answer
            self._closing.set()
            self._queue.put(None)
        self._thread.join(2 * self._keepalive.tick_s)  # time to tell the peer
        if channel := self._channel:
            channel.connection.abort()
        self._thread.join()

    def _run(self) -> None:
        busy = False  # with what follows behind
        while not self._closing.is_set():
            try:
                item = self._queue.get(timeout=0.0 if busy else self._keepalive.tick_s)
            except queue.Empty:
                busy = self._between(self._follow)
                continue
            if item and item[1].set_running_or_notify_cancel():
                if self._behind:
                    self._between(partial(self._give_way, item[0]))
                item[1].set_result(self._send(item[0]))
            busy = bool(self._behind)
        self._disconnect("the sender was closed" if self._behind else "")
        self._behind.drop("the sender was closed")
        while not self._queue.empty():
            item = self._queue.get()
            if item and item[1].set_running_or_notify_cancel():
                item[1].set_result(Sent(item[0].transfer_id, error="the sender was closed"))

    def _send(self, outgoing: Outgoing) -> Sent:
        """The transfer, whatever becomes of it."""
        sent = Sent(outgoing.transfer_id)
        try:
            sending = Sending(outgoing, sent, self.link, self._size, self._count, self._closing, self._behind)
            self._persist(sending)
            if sent.refining and self._channel:
                self._behind.add(sending, self._channel)
        except (PeerError, FrameError, Cancelled) as error:
            sent.error = "the sender was closed" if self._closing.is_set() else str(error)
        except Exception as error:
            log.exception("transfer %d to %s failed on this side", outgoing.transfer_id, self._address)
            sent.error = f"{type(error).__name__}: {error}"
            self._disconnect(sent.error)
        self._count += 1
        return replace(sent, refining=sent.refining and not sent.error)

    def _persist(self, sending: Sending) -> None:
        """Try, and after a break go on, as long as bytes get through or resume_s has not passed."""
        sent, reused = sending.sent, self._channel is not None
        until_s, held_bytes, tries, broken = -math.inf, -1, 0, ""
        while True:
            try:
                self._attempt(sending)
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
                    log.warning("%s; transfer %d is taken up again", error, sent.transfer_id)
                if time.monotonic() >= until_s:
                    again = "" if str(error) == broken else f", then: {error}"
                    raise PeerLost(f"{broken}; not resumed within {self._keepalive.resume_s:g} s{again}") from None
            sending.check_cancel()
            self._closing.wait(min(RECONNECT_S[0] * 2**tries, RECONNECT_S[1]))
            tries += 1

    def _attempt(self, sending: Sending) -> None:
        """One try, on the connection that there is or a new one; after an error that concerns the connection there is none."""
        try:
            sending.run(self._channel or self._connect())
        except Refused:
            raise
        except PeerLost as error:
            reason = self._channel.last_words() if self._channel else ""
            self._disconnect()
            raise PeerError(reason) if reason else error from None
        except PeerSilent:
            self._disconnect()  # without a word, which it would not read
            raise
        except (PeerError, FrameError, Cancelled) as error:
            self._disconnect(str(error))
            raise

    def _connect(self) -> Channel:
        """Connect and say HELLO. Raises PeerError or FrameError if the two do not fit together."""
        connection = self._transport.connect(self._address, self._keepalive.silence_s, keyed=self._key is not None)
        channel = self._channel = Channel(connection, self._keepalive)
        if self._closing.is_set():
            raise PeerLost("closed")
        self._size.most_bytes = connection.frame_bytes
        greet(channel, self._hello, self._key)
        return channel

    def _between(self, work: Callable[[], bool]) -> bool:
        """Between transfers: say that we live, notice if the peer does not, and do some work; whether there is more of it at once."""
        try:
            while self._channel and self._channel.arrived(0):
                header = self._channel.header()
                if not self._behind.take(header, self._channel):
                    self._channel.aside(header)
            return work()
        except (PeerLost, PeerSilent) as error:
            if not self._closing.is_set():
                log.warning("%s: %s; the next transfer will connect again", self._address, error)
            self._disconnect()
            return bool(self._behind)
        except (PeerError, FrameError, Cancelled) as error:
            if not self._closing.is_set():
                log.warning("%s: %s; the next transfer will connect again", self._address, error)
            self._disconnect("" if isinstance(error, PeerError) else str(error))
            self._behind.drop(str(error))
        except Exception as error:
            log.exception("what follows behind transfers to %s failed on this side", self._address)
            self._disconnect(f"{type(error).__name__}: {error}")
            self._behind.drop(f"{type(error).__name__}: {error}")
        return False

    def _follow(self) -> bool:
        """One frame behind the start of a transfer; after a break over a new connection, if there is one to be had."""
        if not self._behind:
            return False
        if not self._channel:
            try:
                self._connect()
            except PeerError as error:
                self._disconnect()
                self._behind.drop(f"not resumed: {error}")
                return False
        assert self._channel is not None
        return self._behind.step(self._channel)

    def _give_way(self, outgoing: Outgoing) -> bool:
        if self._channel:
            self._behind.pause(self._channel)
            self._behind.clear(outgoing.transfer_id, self._channel)
        return False

    def _disconnect(self, reason: str = "") -> None:
        if channel := self._channel:
            if reason:
                channel.abort(reason)
            self._channel = None
            channel.connection.close()
