"""Simulated time, and the one timer each process of the model waits on.

SimPy schedules by delay, and `now + (then - now)` is not always `then`; the model's times are planned in closed form and compared
for equality, so here an event is put at an absolute time.

Not modelled: drift or offset between the clocks of nodes.
"""

from __future__ import annotations

from heapq import heappush

import simpy
from simpy.events import NORMAL, Event


class Clock(simpy.Environment):
    """A SimPy environment whose events may be put at an absolute time, exactly."""

    def put(self, event: Event, time_s: float) -> None:
        if time_s < self._now:
            raise RuntimeError(f"an event at {time_s} s is in the past; it is {self._now} s")
        heappush(self._queue, (time_s, NORMAL, next(self._eid), event))


class _Alarm(Event):
    """An event that is bound to happen: SimPy's Timeout, at an absolute time and with its one callback."""

    def __init__(self, clock: Clock, time_s: float, wake: Wake) -> None:
        self.env = clock
        self.callbacks = [wake.ring]
        self._ok = True
        self._value = None
        clock.put(self, time_s)


class Wake(Event):
    """The one timer of one process: `yield wake.at(t)`, and whoever changes the plan moves it.

    An alarm that was moved stays in SimPy's queue until its time; it is not the newest one then, and does nothing. (Racing two
    events, `timeout | event`, would leave as many stale timers and cost nine times as much.)
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.clock = clock
        self._alarm: Event | None = None

    def at(self, time_s: float) -> Wake:
        self._alarm = _Alarm(self.clock, time_s, self)
        return self

    def after(self, delay_s: float) -> Wake:
        return self.at(self.clock.now + delay_s)

    def cancel(self) -> None:
        self._alarm = None

    def ring(self, alarm: Event) -> None:
        if alarm is not self._alarm:
            return
        self._alarm = None
        sleepers, self.callbacks = self.callbacks, []
        for resume in sleepers or ():
            resume(alarm)
