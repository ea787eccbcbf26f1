"""The receiving end of a node: a listener, and a thread for each peer that has come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from abkt.transfer.pieces import ByteSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.leases import Leases
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.session import Decider, MemoryBell, ReceiverState, Session
from abkt.transfer.transport import Connection, Transport

MOST_PEERS = 64

log = logging.getLogger(__name__)


class Receiver:
    """Listens from its construction on; close ends every thread and socket. Raises ValueError if the address is bad or taken.

    accept(peer, offer) -> the memory that is now reserved for this transfer (it may be smaller than offer.size: then only cuts that fit
    may come), or None: not now, ask again (at the latest when memory_freed is called). It raises ValueError to refuse for good.
    on_commit(received): every promised byte is in received.sink, and verified. on_abort(received, reason): it never will be; the memory is
    free again, and nobody writes there any more. Exactly one of the two follows each sink that was returned; if the connection breaks,
    after keepalive.hold_s at the latest. on_refined(received, cut): of a transfer that was committed as `refining`, the bytes up to this
    cut are there now too; None: no better values are taken. on_settled(received) ends each that was refinable: nobody writes there any
    more. All are called from the threads of connections and of the listener, and must return at once.
    key: peers must prove that they hold it; without, only this host is served. price(came_bytes) is told to senders now and then:
    it is asked with the bytes of DATA that have come over a connection since it was asked there last.
    most_peers: connections at a time, those that are not greeted yet counted; one more is closed unheard.
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
        price: Callable[[int], float] = lambda came_bytes: 0.0,
        on_refined: Callable[[Received, int], None] | None = None,
        on_settled: Callable[[Received], None] = lambda received: None,
        most_peers: int = MOST_PEERS,
    ) -> None:
        self._keepalive = keepalive or Keepalive()
        self._listener = transport.listen(address, self._keepalive.silence_s, keyed=key is not None)
        self.address = self._listener.address
        self._memory = MemoryBell()
        self._leases = Leases(self._keepalive, on_abort, on_settled)
        self._node = ReceiverState(hello, key, Decider(accept, on_commit, price, on_refined), self._memory, self._leases, self._keepalive)
        self._most_peers = most_peers
        self._full = False
        self._sessions: dict[Session, threading.Thread] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"listen on {self.address}", daemon=True)
        self._thread.start()

    def memory_freed(self) -> None:
        """Ask `accept` again for the offers that wait."""
        self._memory.freed()

    def close(self) -> None:
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
        while not self._closing.is_set():
            connection = self._listener.accept(self._keepalive.tick_s)
            self._sessions = {session: thread for session, thread in self._sessions.items() if thread.is_alive()}
            self._leases.sweep(time.monotonic())
            if connection:
                self._serve(connection)

    def _serve(self, connection: Connection) -> None:
        """Logged when it becomes full, not for each that is turned away."""
        full = len(self._sessions) >= self._most_peers
        if full and not self._full:
            log.warning("%s: a connection more than the %d served at a time; closed, as are those after it", self.address, self._most_peers)
        self._full = full
        if full:
            connection.close()
            return
        session = Session(connection, self._node)
        self._sessions[session] = threading.Thread(target=session.run, name=f"receive from {connection.peer}", daemon=True)
        self._sessions[session].start()
