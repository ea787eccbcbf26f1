"""The NIC of a worker as its transfers see it: what waits for it, what passes, and so what a byte on it costs."""

from __future__ import annotations

import math
import threading

from abkt.policy.price import Price


class WorkerNic:
    """Thread-safe: the main loop and the transfer's threads count. Times are the run's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset(math.inf)

    def reset(self, bytes_per_s: float) -> None:
        """A run begins; the rate is that of the NIC at its best."""
        with self._lock:
            self._price = Price(bytes_per_s)
            self._waiting: dict[int, float] = {}

    def enter(self, now_s: float, number: int, wire_bytes: float) -> None:
        """So many bytes of a transfer are expected to pass."""
        with self._lock:
            if number not in self._waiting:
                self._waiting[number] = wire_bytes
                self._price.enter(now_s, wire_bytes)

    def leave(self, number: int) -> None:
        """They have passed, or will not come. One that was never told of is none."""
        with self._lock:
            if (wire_bytes := self._waiting.pop(number, None)) is not None:
                self._price.leave(wire_bytes)

    def passed(self, now_s: float, wire_bytes: int) -> None:
        with self._lock:
            self._price.passed(now_s, wire_bytes)

    def per_byte(self) -> float:
        with self._lock:
            return self._price.per_byte()
