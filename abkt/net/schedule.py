"""Applies a capacity schedule in real time: calls a function with the rate at each change."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from abkt.capacity import Capacity

CLOSE_S = 1e-6  # changes that are closer together than this are applied as one


class ScheduleFollower(AbstractContextManager["ScheduleFollower"]):
    """A context in which shape(bytes_per_s) is called at once with the current rate, and then by a thread at each change.

    Parameters
    ----------
    capacity : Capacity
        The schedule.
    shape : callable
        Sets a rate in bytes per second. An exception that it raises in the thread ends the schedule, and is raised on leaving.
    origin_s : float
        Time on time.monotonic at which the schedule starts. Its first rate holds before that.

    Attributes
    ----------
    changes : int
        Number of changes applied so far.
    late_s : float
        Largest delay so far from the time of a change until `shape` had set its rate.
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
        except Exception as error:  # noqa: BLE001 - it is raised on leaving the context
            self._error = error


def rate_at(capacity: Capacity, now_s: float) -> tuple[float, float]:
    """(rate at now_s, time of the next change that is not immediate)."""
    rate, change_s = capacity.at(max(0.0, now_s))
    while change_s < now_s + CLOSE_S:
        rate, change_s = capacity.at(change_s)
    return rate, change_s
