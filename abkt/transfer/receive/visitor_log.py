"""A log of refused visitors that they cannot fill: anyone may connect, and each connection can fail in its own way."""

from __future__ import annotations

import logging
import threading
import time

EVERY_S = 10.0

log = logging.getLogger(__name__)


class VisitorLog:
    """Logs why connections ended before their handshake: one line in EVERY_S at most, with the number of the others. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._unsaid = 0

    def add(self, peer: str, reason: str) -> None:
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._next_s:
                self._unsaid += 1
                return
            unsaid, self._unsaid, self._next_s = self._unsaid, 0, now_s + EVERY_S
        log.warning("%s: %s; connection closed%s", peer, reason, f" ({unsaid} more like it)" if unsaid else "")
