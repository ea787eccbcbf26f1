"""uvicorn with limits on connections. A client that does nothing, reads nothing or is gone cannot keep others out.

uvicorn has no time limit before a connection's first request, and counts idle connections against its limit. So idle connections are
closed after a time, and earlier, oldest first, where new ones need their place. asyncio's own accept loop, without a file descriptor left,
logs and retries thousands of times at once (in Python 3.11); the loop here waits, and says so once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 1024
IDLE_S = 60.0  # a connection may be without a request for this long
UNREAD_S = 30.0  # a client that reads nothing for this long, while an answer waits, is disconnected
GRACE_S = 5  # time that running answers get when the server ends
SWEEP_S = 1.0
PAUSE_S = 0.2
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)


class HttpConnection(H11Protocol):
    """One connection. idle_since_s: when it had no request any more; unread_since_s: when its client stopped reading; None: it reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.idle_since_s = time.monotonic()
        self.unread_since_s: float | None = None
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        self.idle_since_s = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.unread_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.unread_since_s = None
        super().resume_writing()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now_s: float) -> bool:
        """Whether it has been idle or unread for too long."""
        unread_s = 0.0 if self.unread_since_s is None else now_s - self.unread_since_s
        return unread_s > UNREAD_S or (self.idle and now_s - self.idle_since_s > IDLE_S)


class HttpServer(uvicorn.Server):
    """Serves an application on listening sockets, until should_exit is set.

    Parameters
    ----------
    app : the application.
    most_connections : connections at a time; None: MOST_CONNECTIONS, or half of the file descriptors that this process may open.
    """

    def __init__(self, app: Starlette, most_connections: int | None = None) -> None:
        most = most_connections or min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        config = uvicorn.Config(
            app,
            http=HttpConnection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="warning",
            access_log=False,
            limit_concurrency=most + 1,  # answers 503; reached only where all connections have a request
            timeout_keep_alive=int(IDLE_S),
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self._most = most
        self._tasks: list[asyncio.Task[None]] = []
        self._full = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listening in sockets or []:
            listening.setblocking(False)
            self._tasks.append(asyncio.create_task(self._accept(listening)))
        self._tasks.append(asyncio.create_task(self._sweep()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets=sockets)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        factory: Any = partial(HttpConnection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        while True:
            try:
                connected, _ = await loop.sock_accept(listening)
                if self._full:
                    self._full = False
                    log.warning("HTTP connections are accepted again")
                self._make_room()
                await loop.connect_accepted_socket(factory, connected)
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    continue  # the client has left already
                if not self._full:
                    self._full = True
                    log.warning("no HTTP connection can be accepted: %s; trying again", error.strerror)
                await asyncio.sleep(PAUSE_S)

    def _make_room(self) -> None:
        """Close the connection that has been idle for longest, if there are too many."""
        connections: Any = self.server_state.connections
        if len(connections) >= self._most:
            idle = [connection for connection in connections if connection.idle]
            if idle:
                oldest = min(idle, key=lambda connection: connection.idle_since_s)
                connections.discard(oldest)
                oldest.transport.abort()

    async def _sweep(self) -> None:
        """Close the connections whose clients do nothing, or read nothing."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            connections: Any = self.server_state.connections
            for connection in [connection for connection in connections if connection.overdue(now_s)]:
                connection.transport.abort()
