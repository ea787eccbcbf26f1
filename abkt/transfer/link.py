"""A link of a given, changing capacity, emulated in user space: a frame is released when its last byte would have passed the link."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from abkt.capacity import Capacity


@dataclass(slots=True)
class PacedLink:
    """An emulated NIC with a capacity schedule. All senders that share it are served first come, first served.

    Frames arrive as over a store-and-forward link. Propagation delay, loss and the return direction are not modelled.

    Parameters
    ----------
    capacity : Capacity
        Bytes per second over time. The default is unlimited.
    clock : callable
        Returns the time in seconds.
    sleep : callable
        Waits for a number of seconds of that clock.
    origin_s : float
        Time on `clock` at which the capacity schedule starts.
    """

    capacity: Capacity = field(default_factory=lambda: Capacity.constant(math.inf))
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    origin_s: float = 0.0
    _free_s: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def book(self, size_bytes: int, ready_s: float) -> float:
        """Reserve the link for a frame. The caller waits until the returned time and then hands the frame to the transport.

        Parameters
        ----------
        size_bytes : int
            Size of the frame on the wire.
        ready_s : float
            Time since which the frame could have been queued at the NIC. A sender that streams passes the time at which its previous
            frame left: a real NIC would have had this frame queued by then, so a sender that is late by less than one frame time leaves
            no gap. Pass inf for a frame that could not have been queued before now.

        Returns
        -------
        float
            Time on `clock` at which the last byte has passed the link.
        """
        with self._lock:
            now_s = self.clock()
            start_s = max(self._free_s, min(ready_s, now_s))
            passed_s = self.origin_s + self.capacity.finish_s(start_s - self.origin_s, size_bytes)
            self._free_s = max(now_s, passed_s)
            return self._free_s
