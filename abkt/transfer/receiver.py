"""The receiving end of a node: a listener, and a thread for each peer that has come."""

from __future__ import annotations

import threading
from collections.abc import Callable

from abkt.transfer.channel import Keepalive
from abkt.transfer.incoming import Decider, Memory, Received, Session
from abkt.transfer.messages import Hello, Offer
from abkt.transfer.pieces import ByteSink
from abkt.transfer.transport import Transport


class Receiver:
    """Listens from its construction on; close ends every thread and socket. Raises ValueError if the address is bad or taken.

    accept(peer, offer) -> the memory that is now reserved for this transfer (it may be smaller than offer.size: then only cuts that fit
    may come), or None: not now, ask again (at the latest when memory_freed is called). It raises ValueError to refuse for good.
    on_commit(received): every promised byte is in received.sink, verified and acknowledged. on_abort(received, reason): it never
    will be; the memory is free again, and nobody writes there any more. Exactly one of the two follows each sink that was returned.
    All three are called from the thread of the peer's connection, so from several threads, and must return at once.
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
    ) -> None:
        self._keepalive = keepalive or Keepalive()
        self._listener = transport.listen(address, self._keepalive.silence_s)
        self.address = self._listener.address
        self._hello = hello
        self._decider = Decider(accept, on_commit, on_abort)
        self._memory = Memory()
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

    def _listen(self) -> None:
        while not self._closing.is_set():
            connection = self._listener.accept(self._keepalive.tick_s)
            self._sessions = {session: thread for session, thread in self._sessions.items() if thread.is_alive()}
            if connection:
                session = Session(connection, self._hello, self._decider, self._memory, self._keepalive)
                self._sessions[session] = threading.Thread(target=session.run, name=f"receive from {connection.peer}", daemon=True)
                self._sessions[session].start()
