"""A link of a given, changing capacity, emulated in user space: each frame is let go when its last byte would have passed the link."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from abkt.capacity import Capacity


@dataclass(slots=True)
class PacedLink:
    """One NIC: first come, first served, whichever sender comes. Arrivals are those of a store-and-forward link.

    origin_s: the time on `clock` at which the capacity's schedule starts. sleep is that clock's.
    Not modelled: propagation delay, loss, the way back.
    """

    capacity: Capacity = field(default_factory=lambda: Capacity.constant(math.inf))
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    origin_s: float = 0.0
    _free_s: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def book(self, size_bytes: int, ready_s: float) -> float:
        """When the last of size_bytes will have passed; the caller waits until then and hands the bytes on.

        ready_s: since when the frame could have been on its way. A sender that streams names the time at which its last frame passed:
        a real NIC would have had this one queued, so being late by less than a frame's own time leaves no hole.
        """
        with self._lock:
            now_s = self.clock()
            start_s = max(self._free_s, min(ready_s, now_s))
            passed_s = self.origin_s + self.capacity.finish_s(start_s - self.origin_s, size_bytes)
            self._free_s = max(now_s, passed_s)
            return self._free_s
