"""A worker's NIC: how many bytes wait for it and pass it, and the price of a byte that follows from that."""

from __future__ import annotations

import math
import threading

from abkt.policy.price import Price


class WorkerNic:
    """Thread-safe: the main loop and the threads of transfers use it. Times are seconds of the run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset(math.inf)

    def reset(self, bytes_per_s: float) -> None:
        """A run begins. bytes_per_s: the highest rate of the NIC."""
        with self._lock:
            self._price = Price(bytes_per_s)
            self._waiting: dict[int, float] = {}

    def enter(self, now_s: float, number: int, wire_bytes: float) -> None:
        """A transfer is expected to pass so many bytes. number: its id."""
        with self._lock:
            if number not in self._waiting:
                self._waiting[number] = wire_bytes
                self._price.enter(now_s, wire_bytes)

    def leave(self, number: int) -> None:
        """The transfer has ended. An id that never entered is ignored."""
        with self._lock:
            if (wire_bytes := self._waiting.pop(number, None)) is not None:
                self._price.leave(wire_bytes)

    def passed(self, now_s: float, wire_bytes: int) -> None:
        """So many bytes have passed."""
        with self._lock:
            self._price.passed(now_s, wire_bytes)

    def per_byte(self) -> float:
        """The price: distortion that a byte must remove to be worth its place."""
        with self._lock:
            return self._price.per_byte()
