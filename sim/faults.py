"""What goes wrong with nodes and requests, from a schedule: nodes that die and come back, nodes that are slow, requests that are too late.

A node that dies does nothing more for anybody: its requests, those on their way to it and those on their way from it are given up, and
placed anew, from their beginning, up to `retries` times each; bytes stop at once. What its engine was at when it died still runs to the end
of the iteration, and counts for nobody. It comes back empty, with the role that it had or was about to get. A straggler takes `factor`
times as long for all that begins in its interval. A request that is not done timeout_s after its arrival fails, and nothing of it is left.

Not modelled: the time until a death is noticed; answers that go on from where they were; a node that dies and is back within its iteration
(it comes back when that has ended).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from heapq import heappop, heappush

from simpy.events import Event

from sim.clock import Clock, Wake
from sim.node.fleet import Nodes
from sim.node.job import Job
from sim.node.node import Node
from sim.roles import RoleController

SETTLE_S = 1e-3  # between two looks whether what a dead node was at has ended


@dataclass(frozen=True, slots=True)
class Death:
    node: str
    at_s: float
    back_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < self.back_s:
            raise ValueError(f"node {self.node} dies at {self.at_s} s and is back at {self.back_s} s; 0 <= at_s < back_s must hold")


@dataclass(frozen=True, slots=True)
class Straggler:
    node: str
    at_s: float
    until_s: float = math.inf
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.at_s < self.until_s and 0 < self.factor < math.inf):
            raise ValueError(f"node {self.node} is slow from {self.at_s} to {self.until_s} s by {self.factor}; the factor must be above 0")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """timeout_s: from the arrival of a request to its last token; math.inf: clients wait for ever."""

    deaths: tuple[Death, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    retries: int = 3
    timeout_s: float = math.inf

    def __post_init__(self) -> None:
        if self.retries < 0 or not self.timeout_s > 0:
            raise ValueError(f"retries is {self.retries} and timeout_s {self.timeout_s}; retries must not be below 0, timeout_s above 0")

    @property
    def empty(self) -> bool:
        return not (self.deaths or self.stragglers) and self.timeout_s == math.inf


class Faults:
    """live: the requests that are in the cluster or at its door. again(job, reason): called for those that a death has cost, to be placed
    anew or to fail; failed(job, reason): for those that are too late. Raises ValueError for a node that the cluster does not have."""

    def __init__(
        self,
        clock: Clock,
        fleet: Nodes,
        roles: RoleController | None,
        plan: FaultPlan,
        again: Callable[[Job, str], None],
        failed: Callable[[Job, str], None],
    ) -> None:
        self.clock, self.fleet, self.roles, self.plan, self.again, self.failed = clock, fleet, roles, plan, again, failed
        self.live: dict[Job, None] = {}
        self.deadlines: list[tuple[float, int, Job]] = []  # heap of (deadline, order of coming, request)
        self.watched = 0
        self.late = Wake(clock)
        nodes = {node.name: node for node in fleet.nodes}
        for name in [*(death.node for death in plan.deaths), *(straggler.node for straggler in plan.stragglers)]:
            if name not in nodes:
                raise ValueError(f"faults: there is no node {name}; the nodes are {', '.join(nodes)}")
        for death in plan.deaths:
            clock.process(self._die(nodes[death.node], death))
        for straggler in plan.stragglers:
            clock.process(self._straggle(nodes[straggler.node], straggler))
        if plan.timeout_s < math.inf:
            clock.process(self._too_late())

    def watch(self, job: Job) -> None:
        """It is in the cluster, or at its door."""
        self.live[job] = None
        if self.plan.timeout_s < math.inf:
            self.watched += 1
            heappush(self.deadlines, (job.request.arrival_s + self.plan.timeout_s, self.watched, job))
            if self.deadlines[0][2] is job:
                self.late.at(max(self.clock.now, self.deadlines[0][0]))

    def forget(self, job: Job) -> None:
        self.live.pop(job, None)

    # -- nodes -------------------------------------------------------------------------------------------------------------------

    def _die(self, node: Node, death: Death) -> Generator[Event, None, None]:
        wake = Wake(self.clock)
        yield wake.at(death.at_s)
        role = node.role
        if role == "dead":
            return
        if self.roles is not None:
            role = self.roles.next.pop(node, role)
        node.role = "dead"
        self.fleet.rank()
        lost = [job for job in self.live if needs(job, node)]
        for job in self.live:
            if job.refinement is not None and job.pair is not None and job.pair.source is node and job not in lost:
                job.refinement.end()  # what has arrived is whole
                job.refinement = None
        for job in lost:
            give_up(job)
        for job in lost:
            del self.live[job]
            self.again(job, f"node {node.name} died")
        if death.back_s == math.inf:
            return
        yield wake.at(death.back_s)
        while node.memory.used or not node.at_rest():
            yield wake.after(SETTLE_S)
        if node.memory.cache is not None:
            node.memory.cache.clear()
        node.rebuilding = False
        node.role = role
        self.fleet.rank()
        self.fleet.changed()

    def _straggle(self, node: Node, straggler: Straggler) -> Generator[Event, None, None]:
        wake = Wake(self.clock)
        yield wake.at(straggler.at_s)
        node.slow_down(straggler.factor)
        if straggler.until_s < math.inf:
            yield wake.at(straggler.until_s)
            node.slow_down(1.0)

    # -- requests ----------------------------------------------------------------------------------------------------------------

    def _too_late(self) -> Generator[Event, None, None]:
        while True:
            yield self.late
            while self.deadlines and self.deadlines[0][0] <= self.clock.now:
                _, _, job = heappop(self.deadlines)
                if job in self.live:
                    give_up(job)
                    del self.live[job]
                    self.failed(job, f"not done within {self.plan.timeout_s:g} s")
            while self.deadlines and self.deadlines[0][2] not in self.live:
                heappop(self.deadlines)
            if self.deadlines:
                self.late.at(max(self.clock.now, self.deadlines[0][0]))


def needs(job: Job, node: Node) -> bool:
    """Whether the request is lost with the node."""
    if job.pair is None:
        return job.node is node
    return job.pair.target is node or (job.pair.source is node and not job.arrived)


def give_up(job: Job) -> None:
    """Wherever it is, its memory is let go, at once or when the iteration that it is in has ended."""
    pair, node = job.pair, job.node
    if pair is None:
        if node is None:  # at the door
            job.gone = True
        elif job.order:
            node.withdraw(job)
        else:
            node.forget(job)
    elif job.arrived:
        pair.target.withdraw(job)
    elif not pair.withdraw(job):
        pair.source.forget(job)
