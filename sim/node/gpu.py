"""What the two sides of a node share: one GPU, one memory, one timer, and what it is doing now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.clock import Clock, Wake
from sim.cost import Costs
from sim.node.batch import Batch
from sim.node.job import Job
from sim.node.memory import KvMemory
from sim.node.pace import Pace
from sim.specs import EngineSpec


class Gpu:
    """done(job): called for a request that ends here. kind: nodes with the same costs and memory have the same.

    state: idle | iterating | coding. While it iterates: `leap` iterations of the batch since start_s and, beside the last of one, `chunk`
    of the prompts, which adds chunk_s. changed: of the rankings that it is in, where it says that its load is another.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        costs: Costs,
        pace: Pace,
        memory: KvMemory,
        usd_per_hour: float,
        engine: EngineSpec,
        done: Callable[[Job], None],
        kind: int = 0,
    ) -> None:
        self.clock = clock
        self.name = name
        self.costs = costs
        self.pace = pace
        self.memory = memory
        self.usd_per_s = usd_per_hour / 3600
        self.engine = engine
        self.done = done
        self.kind = kind
        self.changed: list[set[Any]] = []
        self.wake = Wake(clock)
        self.state = "idle"
        self.batch = Batch(pace)
        self.start_s = 0.0
        self.leap = 0
        self.chunk: list[tuple[Job, int]] = []
        self.chunk_s = 0.0
        self.stretched_s = 0.0  # of chunk_s, what the codec took of it
        self.chores: list[tuple[float, Callable[[], None]]] = []  # seconds, and what to call at their end
        self.role = ""
        self.rebuilding = False
        self.drained: Callable[[Any], None] | None = None
        self.freed: Callable[[], None] = _nobody  # called when memory is free that no request's end has announced

    def check_drained(self) -> None:
        """Without a role, and nothing left of what it had to do: say so."""
        if not self.role and self.memory.used == 0 and self.drained is not None and self.at_rest():
            self.drained(self)

    def at_rest(self) -> bool:
        raise NotImplementedError

    def attend(self) -> None:
        """Somebody waits: begin, or end the leap after the running iteration."""
        if self.state == "idle":
            self.state = "iterating"
            self.start_s, self.leap = self.clock.now, 0
            self.wake.after(0.0)
        elif self.state == "iterating" and self.leap and not self.chunk:
            self.leap = min(self.leap, max(1, self.batch.iterations_until(self.start_s, self.clock.now)))
            self.wake.at(self.start_s + self.batch.leap_s(self.leap))

    def interject(self, seconds: float, then: Callable[[], None]) -> None:
        """Something else takes so long, between two iterations, as soon as one ends; then() is called when it is done."""
        self.chores.append((seconds * self.batch.slow, then))
        self.attend()

    def stretch(self, seconds: float) -> None:
        """The iteration that is running takes so much longer."""
        self.chunk_s += seconds
        self.stretched_s += seconds
        self.wake.at(self.start_s + (self.batch.leap_s(self.leap) + self.chunk_s))

    def slow_down(self, factor: float) -> None:
        """What begins from now on takes so much longer than it should; 1: no longer."""
        self.batch.slow = factor
        if self.leap:
            self.attend()

    def mark(self) -> None:
        for ranking in self.changed:
            ranking.add(self)


def _nobody() -> None:
    pass
