"""A SimPy environment on the simulator's timers (sim.timers), so that a process may also wait for any SimPy event.

SimPy schedules by delay, and in floating point `now + (then - now)` is not always `then`. So the simulator's own processes wait for timers
alone.

Not modelled: SimPy's own processes, which others may wait for or interrupt, and which take half as long again.
"""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import NORMAL, Event

from sim.timers import URGENT, Timers


class Clock(Timers, simpy.Environment):  # type: ignore[misc]  # it replaces SimPy's schedule, peek, step, run and process
    """`now` is a plain attribute here. Processes yield a Wake, or any SimPy event that has not happened yet."""

    def __init__(self) -> None:
        simpy.Environment.__init__(self)
        Timers.__init__(self)

    def schedule(self, event: Event, priority: int = NORMAL, delay: float = 0.0) -> None:  # type: ignore[override]
        self.numbers += 1
        self.queue.add((self.now + delay, self.numbers + (0 if priority else URGENT), event))

    def happen(self, event: Event) -> None:
        callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
        for callback in callbacks:
            callback(event)
        if not (event.ok or event.defused):
            raise event.value  # type: ignore[misc]  # of a failed event it is an exception

    def resume_after(self, event: Event, resume: Callable[[], None]) -> None:
        event.callbacks.append(lambda _: resume())
