"""A worker's NIC: the bytes that wait for it and pass it, and the price of a byte."""

from __future__ import annotations

import math
import threading

from abkt.policy.price import Price


class WorkerNic:
    """The backlog and price of a NIC. Thread-safe: the main loop and the transfers' threads use it. Times are seconds of the run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset(math.inf)

    def reset(self, bytes_per_s: float) -> None:
        """Start a new run. bytes_per_s: the highest rate of the NIC."""
        with self._lock:
            self._price = Price(bytes_per_s)
            self._waiting: dict[int, float] = {}

    def enter(self, now_s: float, number: int, wire_bytes: float) -> None:
        """Add a transfer that is expected to send wire_bytes. number: its id."""
        with self._lock:
            if number not in self._waiting:
                self._waiting[number] = wire_bytes
                self._price.enter(now_s, wire_bytes)

    def leave(self, number: int) -> None:
        """Remove a transfer that has ended. An unknown id is ignored."""
        with self._lock:
            if (wire_bytes := self._waiting.pop(number, None)) is not None:
                self._price.leave(wire_bytes)

    def passed(self, now_s: float, wire_bytes: int) -> None:
        """Count bytes that have passed the NIC."""
        with self._lock:
            self._price.passed(now_s, wire_bytes)

    def per_byte(self) -> float:
        """The price of a byte: the distortion that it must remove to be worth sending."""
        with self._lock:
            return self._price.per_byte()
