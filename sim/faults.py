"""Faults from a schedule: nodes that die and come back, nodes that are slow, and requests that time out.

A node that dies stops serving at once. Requests on it, and requests whose KV is on the way to it or from it, are aborted and their
transfers stop. Each of them starts over, at most `retries` times. The iteration that the engine was running still runs to its end and
counts for no request. The node comes back empty, with the role that it had or was about to get. A straggler takes `factor` times as long
for all work that begins in its interval. A request that is not done timeout_s after its arrival fails and is aborted.

Not modelled: the time until a death is noticed; answers that continue where they stopped; a node that dies and comes back within one
iteration (it comes back when the iteration has ended).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from abkt.ranges import bound
from sim.job import Job
from sim.node.node import Node
from sim.nodes import Nodes
from sim.roles import RoleController
from sim.timers import Process, Timers, Wake

SETTLE_S = 1e-3  # seconds between two checks whether a dead node's iteration has ended


@dataclass(frozen=True, slots=True)
class Death:
    """The node dies at at_s and comes back at back_s (math.inf: never)."""

    node: str
    at_s: float
    back_s: float = math.inf

    def __post_init__(self) -> None:
        bound(self, "at_s", least=0)
        bound(self, "back_s", above=0, infinite=True)
        if not self.at_s < self.back_s:
            raise ValueError(f"node {self.node} dies at {self.at_s} s and is back at {self.back_s} s; 0 <= at_s < back_s must hold")


@dataclass(frozen=True, slots=True)
class Straggler:
    """From at_s to until_s the node takes `factor` times as long."""

    node: str
    at_s: float
    until_s: float = math.inf
    factor: float = 2.0

    def __post_init__(self) -> None:
        bound(self, "at_s", least=0)
        bound(self, "until_s", above=0, infinite=True)
        bound(self, "factor", above=0)
        if not self.at_s < self.until_s:
            raise ValueError(f"node {self.node} is slow from {self.at_s} to {self.until_s} s; at_s < until_s must hold")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which nodes die or are slow, and when.

    retries: further attempts of a request whose node died. timeout_s: limit from a request's arrival to its last token; math.inf: none.
    """

    deaths: tuple[Death, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    retries: int = 3
    timeout_s: float = math.inf

    def __post_init__(self) -> None:
        bound(self, "retries", least=0)
        bound(self, "timeout_s", above=0, infinite=True)

    @property
    def empty(self) -> bool:
        return not (self.deaths or self.stragglers) and self.timeout_s == math.inf


class FaultInjector:
    """Applies a FaultPlan to a running simulation.

    live: the requests in the cluster or waiting for admission. retry(job, reason): called for a request that was lost with a dead node; it
    starts over or fails. failed(job, reason): called for a request that has timed out.

    Raises ValueError for a node that the cluster does not have.
    """

    def __init__(
        self,
        clock: Timers,
        nodes: Nodes,
        roles: RoleController | None,
        plan: FaultPlan,
        retry: Callable[[Job, str], None],
        failed: Callable[[Job, str], None],
    ) -> None:
        self.clock, self.nodes, self.roles, self.plan, self.retry, self.failed = clock, nodes, roles, plan, retry, failed
        self.live: dict[Job, None] = {}
        self.deadlines: list[tuple[float, int, Job]] = []  # heap of (deadline, order of tracking, job)
        self.tracked = 0
        self.deadline = Wake(clock)  # fires at the first of the deadlines
        by_name = {node.name: node for node in nodes.all}
        for name in [*(death.node for death in plan.deaths), *(straggler.node for straggler in plan.stragglers)]:
            if name not in by_name:
                raise ValueError(f"faults: there is no node {name}; the nodes are {', '.join(by_name)}")
        for death in plan.deaths:
            clock.process(self._die(by_name[death.node], death))
        for straggler in plan.stragglers:
            clock.process(self._slow_down(by_name[straggler.node], straggler))
        if plan.timeout_s < math.inf:
            clock.process(self._fail_late())

    def track(self, job: Job) -> None:
        """The job is submitted for admission."""
        self.live[job] = None
        if self.plan.timeout_s < math.inf:
            self.tracked += 1
            heappush(self.deadlines, (job.request.arrival_s + self.plan.timeout_s, self.tracked, job))
            if self.deadlines[0][2] is job:
                self.deadline.at(max(self.clock.now, self.deadlines[0][0]))

    def untrack(self, job: Job) -> None:
        """The job has ended."""
        self.live.pop(job, None)

    # -- nodes -------------------------------------------------------------------------------------------------------------------

    def _die(self, node: Node, death: Death) -> Process:
        wake = Wake(self.clock)
        yield wake.at(death.at_s)
        role = node.role
        if role == "dead":
            return
        if self.roles is not None:
            role = self.roles.next.pop(node, role)
        node.role = "dead"
        self.nodes.update_rankings()
        lost = [job for job in self.live if needs(job, node)]
        for job in self.live:
            refinement = job.transfer.refinement
            if refinement is not None and job.pair is not None and job.pair.source is node and job not in lost:
                refinement.end()  # decoding goes on with the KV that it began with
        for job in lost:
            abort(job)
        for job in lost:
            del self.live[job]
            self.retry(job, f"node {node.name} died")
        if death.back_s == math.inf:
            return
        yield wake.at(death.back_s)
        while node.memory.used or not node.at_rest():
            yield wake.after(SETTLE_S)
        if node.memory.cache is not None:
            node.memory.cache.clear()
        node.rebuilding = False
        node.role = role
        self.nodes.update_rankings()
        self.nodes.changed()

    def _slow_down(self, node: Node, straggler: Straggler) -> Process:
        wake = Wake(self.clock)
        yield wake.at(straggler.at_s)
        node.gpu.slow_down(straggler.factor)
        if straggler.until_s < math.inf:
            yield wake.at(straggler.until_s)
            node.gpu.slow_down(1.0)

    # -- requests ----------------------------------------------------------------------------------------------------------------

    def _fail_late(self) -> Process:
        while True:
            yield self.deadline
            while self.deadlines and self.deadlines[0][0] <= self.clock.now:
                _, _, job = heappop(self.deadlines)
                if job in self.live:
                    abort(job)
                    del self.live[job]
                    self.failed(job, f"not done within {self.plan.timeout_s:g} s")
            while self.deadlines and self.deadlines[0][2] not in self.live:
                heappop(self.deadlines)
            if self.deadlines:
                self.deadline.at(max(self.clock.now, self.deadlines[0][0]))


def needs(job: Job, node: Node) -> bool:
    """Whether the job is lost if the node dies."""
    if job.pair is None:
        return job.node is node
    return job.pair.target is node or (job.pair.source is node and not job.transfer.arrived)


def abort(job: Job) -> None:
    """Abort the job at any stage. Its memory is released at once, or at the end of the iteration that it is in."""
    pair, node = job.pair, job.node
    if pair is None:
        if node is None:  # it waits for admission
            job.aborted = True
        elif job.decoding.order:
            node.decoding.abort(job)
        else:
            node.prompts.abort(job)
    elif job.transfer.arrived:
        pair.target.decoding.abort(job)
    elif not pair.abort(job):
        pair.source.prompts.abort(job)
