"""A proxy in front of a worker that can swallow all bytes, as a network that drops packets does."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class BlackHole:
    """address: where the proxy listens. open: whether it passes bytes on. It accepts new connections in any case, as a kernel does."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.open = True
        self._sockets = [self._listening]

    def __enter__(self) -> BlackHole:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(self._target)
                self._sockets += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.open:
                    sink.sendall(data)
            if self.open:
                sink.shutdown(socket.SHUT_WR)
