"""A schedule in real time: shape(rate) at each change of a capacity."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from abkt.capacity import Capacity

CLOSE_S = 1e-6


class ScheduleFollower(AbstractContextManager["ScheduleFollower"]):
    """While it is entered, a thread calls shape(bytes_per_s): at once with the rate of now, then at each change.

    origin_s: the time on CLOCK_MONOTONIC at which the schedule starts; its first rate holds before. late_s: the worst lateness so far
    of a rate that had been set, its own time included. What shape raises ends the following and is raised on leaving.
    """

    def __init__(self, capacity: Capacity, shape: Callable[[float], None], origin_s: float) -> None:
        self.changes = 0
        self.late_s = 0.0
        self._capacity = capacity
        self._shape = shape
        self._origin_s = origin_s
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def __enter__(self) -> ScheduleFollower:
        rate, self._change_s = rate_at(self._capacity, time.monotonic() - self._origin_s)
        self._shape(rate)
        if self._change_s < math.inf:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()
        if self._error and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            while self._change_s < math.inf:
                if self._stop.wait(max(0.0, self._origin_s + self._change_s - time.monotonic())):
                    return
                due_s = self._change_s
                rate, self._change_s = rate_at(self._capacity, max(due_s, time.monotonic() - self._origin_s))
                self._shape(rate)
                self.changes += 1
                self.late_s = max(self.late_s, time.monotonic() - self._origin_s - due_s)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever leaves the context
            self._error = error


def rate_at(capacity: Capacity, now_s: float) -> tuple[float, float]:
    """(rate at now_s, time of the next change that is worth waiting for)."""
    rate, change_s = capacity.at(max(0.0, now_s))
    while change_s < now_s + CLOSE_S:
        rate, change_s = capacity.at(change_s)
    return rate, change_s
