"""The sending end of one peer: a thread, a queue of transfers in the order they came, one connection that is made when needed."""

from __future__ import annotations

import logging
import math
import queue
import threading
from concurrent.futures import Future

from abkt.transfer.channel import Channel, Keepalive
from abkt.transfer.frame import FrameError, FrameType, Header
from abkt.transfer.link import PacedLink
from abkt.transfer.messages import Hello
from abkt.transfer.outgoing import Cancelled, FrameSize, Outgoing, Sending, Sent
from abkt.transfer.transport import PeerError, PeerLost, PeerSilent, Refused, Transport

log = logging.getLogger(__name__)


class Sender:
    """submit transfers, then close. hello: who this side is and what layout it has; the peer must have the same.

    A transfer that fails gives a Sent with an error; the next one is tried on a new connection. One whose connection turns out to be
    dead before anything was granted is tried again once.
    """

    def __init__(
        self, transport: Transport, address: str, hello: Hello, link: PacedLink | None = None, keepalive: Keepalive | None = None
    ) -> None:
        self.link = link or PacedLink()
        self._transport = transport
        self._address = address
        self._hello = hello
        self._keepalive = keepalive or Keepalive()
        self._queue: queue.SimpleQueue[tuple[Outgoing, Future[Sent]] | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._size = FrameSize()
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
        if channel := self._channel:
            channel.connection.abort()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                item = self._queue.get(timeout=self._keepalive.tick_s)
            except queue.Empty:
                self._idle()
                continue
            if item and item[1].set_running_or_notify_cancel():
                item[1].set_result(self._send(item[0]))
        self._disconnect()
        while not self._queue.empty():
            item = self._queue.get()
            if item and item[1].set_running_or_notify_cancel():
                item[1].set_result(Sent(item[0].transfer_id, error="the sender was closed"))

    def _send(self, outgoing: Outgoing) -> Sent:
        """The transfer, whatever becomes of it."""
        sent = Sent(outgoing.transfer_id)
        try:
            reused = self._channel is not None
            try:
                self._attempt(outgoing, sent)
            except PeerLost:
                if not reused or not math.isnan(sent.granted_s) or self._closing.is_set():
                    raise
                sent = Sent(outgoing.transfer_id, retries=1)
                self._attempt(outgoing, sent)
        except (PeerError, FrameError, Cancelled) as error:
            sent.error = "the sender was closed" if self._closing.is_set() else str(error)
        except Exception as error:
            log.exception("transfer %d to %s failed on this side", outgoing.transfer_id, self._address)
            sent.error = f"{type(error).__name__}: {error}"
            self._disconnect(sent.error)
        return sent

    def _attempt(self, outgoing: Outgoing, sent: Sent) -> None:
        """One try, on the connection that there is or a new one; after an error that concerns the connection there is none."""
        try:
            channel = self._channel or self._connect()
            Sending(outgoing, sent, channel, self.link, self._size, epoch=sent.retries).run()
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
        """Connect and say HELLO. Raises PeerError if the peer's layout is another."""
        channel = self._channel = Channel(self._transport.connect(self._address, self._keepalive.silence_s), self._keepalive)
        if self._closing.is_set():
            raise PeerLost("closed")
        channel.send(Header(FrameType.HELLO), [self._hello.payload()])
        channel.peer = Hello.parse(channel.expect(FrameType.HELLO)[1]).node
        return channel

    def _idle(self) -> None:
        """Between transfers: say that we live, and notice if the peer does not."""
        try:
            while self._channel and self._channel.arrived(0):
                self._channel.aside(self._channel.header())
        except (PeerError, FrameError) as error:
            if not self._closing.is_set():
                log.warning("%s: %s; the next transfer will connect again", self._address, error)
            self._disconnect()

    def _disconnect(self, reason: str = "") -> None:
        if channel := self._channel:
            if reason:
                channel.abort(reason)
            self._channel = None
            channel.connection.close()
