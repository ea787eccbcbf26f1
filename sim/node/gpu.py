"""The time of one GPU: its present work, when that ends, and the work that waits. Both sides of a node share it.

An iteration of the engine serves the decode batch alone, or it also computes chunks of prompts. In the first case one leap spans all
iterations until the batch changes; in the second case a leap is a single iteration. Other work, such as expanding a refinement, runs
between two iterations.

Not modelled: CUDA streams that overlap the codec with forward passes.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.cost import Costs
from sim.job import Job
from sim.node.batch import Batch
from sim.node.memory import KvMemory
from sim.node.pace import Pace
from sim.specs import EngineSpec
from sim.timers import Timers, Wake


class Gpu:
    """One GPU with its memory, its batch and its timer.

    state: idle | iterating | coding. While it iterates, `leap` iterations of the batch run from start_s on. The last of them also computes
    `chunk`, parts of prompts as (job, tokens), which adds chunk_s seconds. codec_s: the part of chunk_s that the codec took. handover_s:
    the part of chunk_s before a new prompt begins. planned_s: prompts that have come by then may be in the next iteration.
    """

    def __init__(
        self, clock: Timers, costs: Costs, pace: Pace, memory: KvMemory, engine: EngineSpec, usd_per_s: float, batch: Batch
    ) -> None:
        self.clock = clock
        self.costs = costs
        self.pace = pace
        self.memory = memory
        self.engine = engine
        self.usd_per_s = usd_per_s
        self.batch = batch
        self.wake = Wake(clock)
        self.state = "idle"
        self.start_s = 0.0
        self.leap = 0
        self.planned_s = 0.0
        self.chunk: list[tuple[Job, int]] = []
        self.chunk_s = 0.0
        self.codec_s = 0.0
        self.handover_s = 0.0
        self.other_work: list[tuple[float, Callable[[], None]]] = []  # (seconds of work, function called at its end)

    def attend(self) -> None:
        """New work waits for the GPU: begin an iteration now, or end the leap after the running iteration."""
        if self.state == "idle":
            self.state = "iterating"
            self.start_s, self.leap = self.clock.now, 0
            self.wake.after(0.0)
        elif self.state == "iterating" and self.leap and not self.chunk:
            ahead = 1 if self.engine.planned_ahead else 0
            self.leap = min(self.leap, max(1, self.batch.iterations_until(self.start_s, self.clock.now) + ahead))
            self.wake.at(self.start_s + self.batch.leap_s(self.leap))

    def run_between_iterations(self, seconds: float, then: Callable[[], None]) -> None:
        """Do other work of `seconds` as soon as an iteration ends, and call then() when it is done."""
        self.other_work.append((seconds * self.batch.slowdown, then))
        self.attend()

    def lengthen_iteration(self, seconds: float) -> None:
        """The codec takes this much time within the running iteration, which ends later."""
        self.chunk_s += seconds
        self.codec_s += seconds
        self.wake.at(self.start_s + (self.batch.leap_s(self.leap) + self.chunk_s))

    def slow_down(self, factor: float) -> None:
        """Work that begins from now on takes `factor` times as long; 1: at normal speed again."""
        self.batch.slowdown = factor
        if self.leap:
            self.attend()
