"""TCP: no delay, and little in the kernel, so that what has not left yet can still be decided."""

from __future__ import annotations

import errno
import ipaddress
import socket

from abkt.transfer.stream_socket import StreamConnection, StreamListener
from abkt.transfer.transport import PeerLost

UNSENT_BYTES = 128 << 10


class Tcp:
    """Addresses are host:port, the host a number or localhost; port 0 takes a free one. Without a key only loopback is served."""

    def connect(self, address: str, silence_s: float, keyed: bool = False) -> StreamConnection:
        try:
            connected = socket.create_connection(_parsed(address, keyed), timeout=silence_s)
        except OSError as error:
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        return _connection(connected, address, silence_s)

    def listen(self, address: str, silence_s: float, keyed: bool = False) -> StreamListener:
        host, port = _parsed(address, keyed)
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen()
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} of {host} is in use; give another one, or 0 for a free one") from None
            raise ValueError(f"cannot listen on {address}: {error.strerror or error}") from None
        bound = f"{_quoted(host)}:{listening.getsockname()[1]}"
        return StreamListener(listening, bound, lambda connected, peer: _connection(connected, peer, silence_s))


def _connection(connected: socket.socket, peer: str, silence_s: float) -> StreamConnection:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return StreamConnection(connected, peer, silence_s)


def _parsed(address: str, keyed: bool) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"address {address!r} is not host:port with a port of at most 65535")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"address {address!r}: the host must be an IP address or localhost") from None
    if not (loopback or keyed):
        raise ValueError(f"address {address!r} is not loopback, so it needs a key: give key_file, or set ABKT_KEY_FILE")
    return host, int(port)


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host
