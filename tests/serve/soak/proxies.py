"""Proxies in front of the decode workers' transfer ports, so that a test can swallow the bytes of a link, or cut it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """One proxy. open: whether it passes bytes on; a closed one swallows them, as a network that drops packets does."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.open = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """End every connection, as a link that goes down and up again does."""
        pairs, self._pairs = self._pairs, []
        for each in (side for pair in pairs for side in pair):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            here, _ = self._listening.accept()
            try:
                there = socket.create_connection(self._target, timeout=10)
            except OSError:  # the worker is gone
                here.close()
                continue
            there.settimeout(None)
            self._pairs.append((here, there))
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.open:
                    sink.sendall(data)
        with suppress(OSError):
            if self.open:
                sink.shutdown(socket.SHUT_WR)


class Proxies:
    """Makes a proxy for each address that a client asks for, over a socket of its own: one line in, one line out."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.made: list[Proxy] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            asking, _ = self._listening.accept()
            with asking, asking.makefile("rw") as lines:
                self.made.append(Proxy(lines.readline().strip()))
                lines.write(f"{self.made[-1].address}\n")
                lines.flush()


def proxied(target: str, proxies: str) -> str:
    """The address of a new proxy in front of this target."""
    host, _, port = proxies.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as asking, asking.makefile("rw") as lines:
        lines.write(f"{target}\n")
        lines.flush()
        return lines.readline().strip()
