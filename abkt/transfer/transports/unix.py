"""Unix stream sockets, between processes of one host."""

from __future__ import annotations

import errno
import os
import socket
import struct

from abkt.transfer.transport import PeerLost
from abkt.transfer.transports.stream_socket import BACKLOG, StreamConnection, StreamListener

CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Unix:
    """Unix stream sockets. Addresses are paths; the file is removed when the listener closes."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> StreamConnection:
        return StreamConnection(connect_unix(address, silence_s), address, silence_s)

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(listen_unix(address), address, lambda connected, peer: StreamConnection(connected, peer, silence_s), address)


def connect_unix(address: str, silence_s: float) -> socket.socket:
    """A connected Unix socket. Raises PeerLost."""
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(silence_s)
    try:
        connected.connect(address)
    except OSError as error:
        connected.close()
        raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
    return connected


def listen_unix(address: str) -> socket.socket:
    """A listening Unix socket. Raises ValueError, one line, if the path cannot be used."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"{address} exists; give another path, or remove it if nobody listens there") from None
        raise ValueError(f"cannot listen on {address}: {error.strerror or error}") from None
    return listening


def check_same_user(connected: socket.socket) -> None:
    """Raises ValueError if the peer's process belongs to another user, OSError if that cannot be determined."""
    _, user, _ = CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    if user != os.geteuid():
        raise ValueError(f"is a process of user {user}, not of this one")
