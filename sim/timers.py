"""Simulated time, and the one timer that each process of the simulator waits on.

The simulator plans times in closed form and compares them for equality, so here a process wakes at an absolute time. Timers of the same
time fire in the order in which they were set.

Most of a run's time goes into waking processes. So the queue holds the timers themselves, and setting a timer makes no new event.

Not modelled: drift or offset between the clocks of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

from mypy_extensions import mypyc_attr

from sim.agenda import Agenda

Process = Generator[Any, None, None]  # it yields a Wake, or in a Clock any SimPy event that has not happened yet

UNSET = -1
URGENT = -(1 << 62)  # what goes before everything else of its time has a number this much lower


@mypyc_attr(allow_interpreted_subclasses=True)
class Timers:
    """A queue of timers. now: the time in simulated seconds. queue: entries of (time, number, Wake); numbers rise with each entry."""

    now: float = 0.0

    def __init__(self) -> None:
        self.now = 0.0
        self.queue = Agenda()
        self.numbers = 0

    def process(self, generator: Process) -> Any:
        """Start a process at this time, before anything that is scheduled for it already. Nothing can wait for it or interrupt it."""
        send = generator.send
        own: list[Callable[[], None]] = []  # resume itself, until the process ends: a function that names itself is a reference cycle

        def resume() -> None:
            try:
                event = send(None)
            except StopIteration:
                own.clear()
                return
            if isinstance(event, Wake):
                event.waiter = own[0]
            else:
                self.resume_after(event, own[0])

        own.append(resume)
        start = Wake(self)
        start.waiter = resume
        self.numbers += 1
        start.number = URGENT + self.numbers
        self.queue.add((self.now, start.number, start))

    def run(self, until: Any = None) -> Any:
        """Run until nothing is left."""
        while not self.queue.is_empty():
            _step(self)

    def step(self) -> None:
        """Handle the first entry of the queue."""
        _step(self)

    def peek(self) -> float:
        """The time of the next entry of the queue, infinity if there is none. The entry may belong to a timer that was moved since."""
        return math.inf if self.queue.is_empty() else self.queue.first()[0]

    def has_work(self) -> bool:
        """Whether anything is scheduled besides background timers."""
        return any(not isinstance(event, Wake) or (event.number == number and not event.background) for _, number, event in self.queue)

    def happen(self, event: Any) -> None:
        """An entry that is no Wake is due."""
        raise NotImplementedError

    def resume_after(self, event: Any, resume: Callable[[], None]) -> None:
        """A process waits for something that is no Wake."""
        raise NotImplementedError


def _step(timers: Timers) -> None:  # a function, because a compiled call of a method that a subclass may replace costs more
    time_s, number, event = timers.queue.take()
    if isinstance(event, Wake):
        if event.number == number:  # otherwise the timer was moved or cancelled
            timers.now = time_s
            event.number = UNSET
            waiter, event.waiter = event.waiter, None
            if waiter is not None:
                waiter()
    else:
        timers.now = time_s
        timers.happen(event)


class Wake:
    """The one timer of a process: `yield wake.at(time_s)`. Other code moves the timer by calling `at` again.

    Earlier entries stay in the queue until their time, and then do nothing. (Waiting for either of two events, `timeout | event`, would
    leave as many stale entries and cost nine times as much.) background: the process never ends, and its timer does not keep a run going.
    waiter: called once, when the timer fires; the process that waits, or another function.
    """

    __slots__ = ("background", "clock", "number", "waiter")

    def __init__(self, clock: Timers, background: bool = False) -> None:
        self.clock = clock
        self.background = background
        self.number = UNSET  # number of its valid entry in the queue
        self.waiter: Callable[[], None] | None = None

    def at(self, time_s: float) -> Wake:
        clock = self.clock
        if time_s < clock.now:
            raise RuntimeError(f"an event at {time_s} s is in the past; it is {clock.now} s")
        clock.numbers = self.number = number = clock.numbers + 1
        clock.queue.add((time_s, number, self))
        return self

    def after(self, delay_s: float) -> Wake:
        return self.at(self.clock.now + delay_s)

    def cancel(self) -> None:
        self.number = UNSET
