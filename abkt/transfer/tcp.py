"""TCP on this host: no delay, and little in the kernel, so that what has not left yet can still be decided."""

from __future__ import annotations

import errno
import ipaddress
import socket

from abkt.transfer.stream_socket import StreamConnection, StreamListener
from abkt.transfer.transport import PeerLost

UNSENT_BYTES = 128 << 10


class Tcp:
    """Addresses are host:port; port 0 takes a free one. Frames carry no key yet, so only loopback addresses are served."""

    def connect(self, address: str, silence_s: float) -> StreamConnection:
        try:
            connected = socket.create_connection(_loopback(address), timeout=silence_s)
        except OSError as error:
            raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from None
        _tune(connected)
        return StreamConnection(connected, address, silence_s)

    def listen(self, address: str, silence_s: float) -> StreamListener:
        host, port = _loopback(address)
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
        return StreamListener(listening, f"{_quoted(host)}:{listening.getsockname()[1]}", silence_s, _tune)


def _tune(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def _loopback(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"address {address!r} is not host:port with a port of at most 65535")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        served = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"address {address!r}: the host must be an IP address or localhost") from None
    if not served:
        raise ValueError(f"address {address!r} is not on this host; any but a loopback address needs a key, which frames do not carry yet")
    return host, int(port)


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host
