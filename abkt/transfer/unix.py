"""Unix sockets: the same frames between processes of one host, without TCP."""

from __future__ import annotations

import errno
import socket

from abkt.transfer.stream_socket import StreamConnection, StreamListener
from abkt.transfer.transport import PeerLost


class Unix:
    """Addresses are paths. The file goes away when the listener closes."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> StreamConnection:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(silence_s)
        try:
            connected.connect(address)
        except OSError as error:
            connected.close()
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        return StreamConnection(connected, address, silence_s)

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        return StreamListener(bound(address), address, lambda connected, peer: StreamConnection(connected, peer, silence_s), address)


def bound(address: str) -> socket.socket:
    """A Unix socket that listens. Raises ValueError, one line."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"{address} exists; give another path, or remove it if nobody listens there") from None
        raise ValueError(f"cannot listen on {address}: {error.strerror or error}") from None
    return listening
