"""The socket that an HTTP server listens on."""

from __future__ import annotations

import os
import socket

BACKLOG = 1024  # connections that wait to be accepted; the kernel may hold fewer


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises ValueError, one line, if that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; give another port, or 0 for a free one"
        ) from None
