"""Simulated time, and the one timer that each process of the simulator waits on.

SimPy schedules by delay, and in floating point `now + (then - now)` is not always `then`. The simulator plans times in closed form and
compares them for equality, so here a process wakes at an absolute time. Events of the same time happen in the order in which they were
scheduled.

Most of a run's time goes into waking processes. So the queue holds the timers themselves, and setting a timer makes no new event.

Not modelled: drift or offset between the clocks of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from heapq import heappop, heappush
from itertools import count

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, URGENT, Event

UNSET = -1


class Clock(simpy.Environment):
    """A SimPy environment whose queue also takes timers (`Wake`) at absolute times.

    It replaces SimPy's public methods `schedule`, `peek`, `step`, `run` and `process`, and has `now` as a plain attribute: the time in
    simulated seconds. Processes yield a Wake, or any SimPy event that has not happened yet.
    """

    now: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: list[tuple[float, int, int, Event]] = []  # heap of (time, priority, number, event)
        self.numbers = count()

    def process(self, generator: Generator[Event, None, object]) -> None:  # type: ignore[override]
        """Start a process at this time, before any event that is scheduled for it already.

        Nothing can wait for the process or interrupt it. SimPy's own processes allow both, but take half as long again.
        """
        send = generator.send

        def resume(_: Event) -> None:
            try:
                event = send(None)
            except StopIteration:
                return
            event.callbacks.append(resume)  # type: ignore[union-attr]  # a Wake's is never None

        start = Wake(self)
        start.callbacks.append(resume)
        start.number = next(self.numbers)
        heappush(self.queue, (self.now, URGENT, start.number, start))

    def schedule(self, event: Event, priority: int = NORMAL, delay: float = 0.0) -> None:  # type: ignore[override]
        heappush(self.queue, (self.now + delay, priority, next(self.numbers), event))

    def peek(self) -> float:
        """The time of the next entry of the queue, infinity if there is none. The entry may belong to a timer that was moved since."""
        return self.queue[0][0] if self.queue else math.inf

    def run(self) -> None:  # type: ignore[override]
        """Run until no event is left."""
        step, queue = self.step, self.queue
        while queue:
            step()

    def step(self) -> None:
        if not self.queue:
            raise EmptySchedule
        time_s, _, number, event = heappop(self.queue)
        if isinstance(event, Wake):
            if event.number != number:
                return  # the timer was moved or cancelled
            self.now = time_s
            event.number = UNSET
            waiting, event.callbacks = event.callbacks, []
            for callback in waiting:
                callback(event)
            return
        self.now = time_s
        callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
        for callback in callbacks:
            callback(event)
        if not (event.ok or event.defused):
            raise event.value  # type: ignore[misc]  # of a failed event it is an exception

    def has_work(self) -> bool:
        """Whether any event is scheduled besides those of background timers."""
        return any(not isinstance(event, Wake) or (event.number == number and not event.background) for _, _, number, event in self.queue)


class Wake(Event):
    """The one timer of a process: `yield wake.at(time_s)`. Other code moves the timer by calling `at` again.

    Earlier entries stay in the queue until their time, and then do nothing. (Waiting for either of two events, `timeout | event`, would
    leave as many stale entries and cost nine times as much.) background: the process never ends, and its timer does not keep a run going.
    """

    callbacks: list  # type: ignore[type-arg]  # never None: the timer may fire again and again

    def __init__(self, clock: Clock, background: bool = False) -> None:
        super().__init__(clock)
        self.clock = clock
        self.background = background
        self.number = UNSET  # number of its valid entry in the queue

    def at(self, time_s: float) -> Wake:
        clock = self.clock
        if time_s < clock.now:
            raise RuntimeError(f"an event at {time_s} s is in the past; it is {clock.now} s")
        self.number = number = next(clock.numbers)
        heappush(clock.queue, (time_s, NORMAL, number, self))
        return self

    def after(self, delay_s: float) -> Wake:
        return self.at(self.clock.now + delay_s)

    def cancel(self) -> None:
        self.number = UNSET
