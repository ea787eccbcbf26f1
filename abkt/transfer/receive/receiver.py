"""The receiving side of a node: a listener, and a thread for each connected peer."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

from abkt.transfer.pieces import ByteSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import FrameError
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.leases import Leases
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.session import MemorySignal, ReceiverCallbacks, Session, SessionContext
from abkt.transfer.receive.visitor_log import VisitorLog
from abkt.transfer.receive.visitors import MOST_PEERS, Visitors
from abkt.transfer.transport import Connection, Transport

BATCH = 256  # connections that are accepted before their sessions start

log = logging.getLogger(__name__)


class Receiver:
    """Receives transfers from any number of peers. It listens from its construction on, until `close`.

    Exactly one of on_commit and on_abort is called for each sink that `accept` returned; if the connection breaks, after keepalive.hold_s
    at the latest. All callbacks run in the threads of connections or of the listener, and must return at once.

    Parameters
    ----------
    transport : Transport
        Accepts the connections.
    address : str
        Where to listen.
    hello : Hello
        Name of this node, and the layout that peers must have.
    accept : callable
        ``accept(peer, offer) -> ByteSink | None``: the memory that is now reserved for this transfer. If it is smaller than offer.size,
        only cuts that fit are sent. None means that there is no memory now; it is called again, at the latest after `memory_freed`.
        It raises ValueError to refuse the transfer.
    on_commit : callable
        ``on_commit(received)``: every byte up to received.cut is in received.sink and verified.
    on_abort : callable
        ``on_abort(received, reason)``: the transfer has failed, and its memory is not written any more.
    keepalive : Keepalive, optional
        Time limits of the connections.
    key : Key, optional
        Peers must prove that they hold it. Without a key only peers on this host are served.
    price : callable, optional
        ``price(received_bytes) -> float``: the price of a byte at this NIC, sent with acknowledgements. received_bytes: DATA bytes that
        came over the connection since the last call for it.
    on_refined : callable, optional
        ``on_refined(received, cut)``: refinement of a committed transfer has completed the bytes up to this cut. Without it refinement is
        declined.
    on_settled : callable, optional
        ``on_settled(received)``: the refinement of a committed transfer has ended, and its memory is not written any more. Called once
        for each transfer with received.refinable.
    most_peers : int
        Peers that have completed the handshake, at a time. Further ones are refused with a reason. Connections that have not completed it
        have a quota of their own (`Visitors`).

    Raises
    ------
    ValueError
        If the address is malformed, taken, or needs a key.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        hello: Hello,
        accept: Callable[[str, Offer], ByteSink | None],
        on_commit: Callable[[Received], None],
        on_abort: Callable[[Received, str], None],
        keepalive: Keepalive | None = None,
        *,
        key: Key | None = None,
        price: Callable[[int], float] = lambda received_bytes: 0.0,
        on_refined: Callable[[Received, int], None] | None = None,
        on_settled: Callable[[Received], None] = lambda received: None,
        most_peers: int = MOST_PEERS,
    ) -> None:
        self._keepalive = keepalive or Keepalive()
        self._listener = transport.listen(address, self._keepalive.silence_s, keyed=key is not None)
        self.address = self._listener.address
        self._memory = MemorySignal()
        self._leases = Leases(self._keepalive, on_abort, on_settled)
        callbacks = ReceiverCallbacks(accept, on_commit, price, on_refined)
        self._visitors: Visitors[Session] = Visitors(most_peers)
        self._context = SessionContext(hello, key, callbacks, self._memory, self._leases, self._keepalive, VisitorLog(), self._greeted)
        self._warned = False
        self._sessions: dict[Session, threading.Thread] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"listen on {self.address}", daemon=True)
        self._thread.start()

    def memory_freed(self) -> None:
        """Call `accept` again for the offers that wait for memory. May be called from any thread."""
        self._memory.freed()

    def close(self) -> None:
        """End every connection and thread. Transfers that are not committed are aborted."""
        self._closing.set()
        self._listener.abort()
        self._thread.join()
        self._listener.close()
        for session in self._sessions:
            session.connection.abort()
        self._memory.freed()
        for thread in self._sessions.values():
            thread.join()
        self._leases.close()

    def _listen(self) -> None:
        swept_s = -math.inf
        while not self._closing.is_set():
            connection = self._listener.accept(self._keepalive.tick_s)
            if (now_s := time.monotonic()) - swept_s >= self._keepalive.tick_s / 2:  # and not for each of a thousand connections
                swept_s = now_s
                self._sessions = {session: thread for session, thread in self._sessions.items() if thread.is_alive()}
                self._leases.sweep(now_s)
            if connection:
                self._admit([connection, *self._more()])

    def _more(self) -> Iterator[Connection]:
        """The other connections that wait to be accepted."""
        for _ in range(BATCH - 1):
            connection = self._listener.accept(0.0)
            if connection is None:
                return
            yield connection

    def _admit(self, connections: list[Connection]) -> None:
        """Start a session for each connection. Visitors that are too many leave, also those that have just come: they need no thread."""
        sessions = [Session(connection, self._context) for connection in connections]
        leaving = {evicted for session in sessions for evicted in self._visitors.enter(session, session.connection.peer)}
        if leaving:
            self._warn("many connections have not completed the handshake; the oldest are closed")
        for evicted in leaving.difference(sessions):
            evicted.connection.abort()
        for session in sessions:
            if session in leaving:
                session.connection.close()
            else:
                self._serve(session)

    def _serve(self, session: Session) -> None:
        connection = session.connection
        thread = threading.Thread(target=self._run, args=(session,), name=f"receive from {connection.peer}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._warn(f"a connection was closed: {error}")
            self._visitors.leave(session)
            connection.close()
            return
        self._sessions[session] = thread

    def _run(self, session: Session) -> None:
        """The body of a session's thread."""
        try:
            session.run()
        finally:
            self._visitors.leave(session)

    def _greeted(self, session: Session) -> None:
        """A session has completed the handshake. Raises FrameError, with the reason, if there are too many peers."""
        if not self._visitors.greet(session):
            raise FrameError(f"{self._visitors.most_peers} peers are connected already")

    def _warn(self, what: str) -> None:
        """Log the first of what would be many equal lines."""
        if not self._warned:
            log.warning("%s: %s", self.address, what)
        self._warned = True
