"""Simulated time, and the one timer each process of the model waits on.

SimPy schedules by delay, and `now + (then - now)` is not always `then`; the model's times are planned in closed form and compared
for equality, so here a process is woken at an absolute time. Of what falls on one moment, what was put there first comes first.

Most of what a run does is waking processes, so the queue holds the timers themselves, not an event for each time one is set.

Not modelled: drift or offset between the clocks of nodes.
"""

from __future__ import annotations

from collections.abc import Generator
from heapq import heappop, heappush

import simpy
from simpy.events import NORMAL, URGENT, Event

UNSET = -1


class Clock(simpy.Environment):
    """A SimPy environment with timers at absolute times, whose processes wait for such timers."""

    def process(self, generator: Generator[Event, None, object]) -> None:  # type: ignore[override]
        """It begins at this moment, before anything that is to happen at it already, and cannot be waited for or interrupted.

        That, and no more: most of a run goes through here, and SimPy's own processes take half as long again.
        """
        send = generator.send

        def go_on(_: Event) -> None:
            try:
                event = send(None)
            except StopIteration:
                return
            event.callbacks.append(go_on)  # type: ignore[union-attr]  # a Wake's is never None

        start = Wake(self)
        start.callbacks.append(go_on)
        start.number = next(self._eid)
        heappush(self._queue, (self._now, URGENT, start.number, start))

    def run(self) -> None:  # type: ignore[override]
        """Until nothing is left to happen."""
        step, queue = self.step, self._queue
        while queue:
            step()

    def step(self) -> None:
        queue = self._queue
        wake = queue[0][3] if queue else None
        if not isinstance(wake, Wake):
            super().step()
            return
        now_s, _, number, _ = heappop(queue)
        if wake.number == number:  # else it was moved or cancelled since, and nothing happens
            self._now = now_s
            wake.number = UNSET
            sleepers, wake.callbacks = wake.callbacks, []
            for resume in sleepers:
                resume(wake)

    def at_work(self) -> bool:
        """Whether anything is to happen that is not aside."""
        return any(not isinstance(wake, Wake) or (wake.number == number and not wake.aside) for _, _, number, wake in self._queue)


class Wake(Event):
    """The one timer of one process: `yield wake.at(t)`, and whoever changes the plan moves it.

    Where it stood before stays in the queue until its time, and does nothing then. (Racing two events, `timeout | event`, would leave as
    many stale timers and cost nine times as much.) aside: its process goes on for ever, and brings nothing to an end.
    """

    callbacks: list  # type: ignore[type-arg]  # never None: it may ring again and again

    def __init__(self, clock: Clock, aside: bool = False) -> None:
        super().__init__(clock)
        self.clock = clock
        self.aside = aside
        self.number = UNSET  # of its entry in the queue
        self._ok = True
        self._value = None

    def at(self, time_s: float) -> Wake:
        clock = self.clock
        if time_s < clock._now:
            raise RuntimeError(f"an event at {time_s} s is in the past; it is {clock._now} s")
        self.number = number = next(clock._eid)
        heappush(clock._queue, (time_s, NORMAL, number, self))
        return self

    def after(self, delay_s: float) -> Wake:
        return self.at(self.clock._now + delay_s)

    def cancel(self) -> None:
        self.number = UNSET
