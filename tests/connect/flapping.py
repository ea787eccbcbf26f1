"""A link that breaks."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any


class Flapping:
    """Relays connections to an address, and breaks the first ones soon after they begin."""

    def __init__(self, target: str, breaks: int = 2, after_bytes: int = 400) -> None:
        self._host, _, port = target.rpartition(":")
        self._port, self._breaks, self._after_bytes = int(port), breaks, after_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[Any] = [self._listening]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Flapping:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection((self._host, self._port))
            self._open += [near, far]
            cut, self._breaks = self._breaks > 0, self._breaks - 1
            for a, b in ((near, far), (far, near)):
                self._start(self._pump, a, b, self._after_bytes if cut else 1 << 60)

    def _pump(self, source: Any, sink: Any, most: int) -> None:
        try:
            while most > 0 and (data := source.recv(min(4096, most))):
                sink.sendall(data)
                most -= len(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
