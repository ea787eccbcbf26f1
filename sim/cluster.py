"""A run of requests through a cluster.

Not modelled: clients that ask again after they were turned away.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from simpy.events import Event

from abkt.policy.admission.base import AdmissionPolicy
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.routing.base import RoutingPolicy
from abkt.policy.view import BitratePolicy
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.admission import AdmissionControl
from sim.clock import Clock, Wake
from sim.faults import FaultPlan, Faults
from sim.invariants import Audit, CheckedMemory
from sim.node.fleet import Nodes
from sim.node.job import Job
from sim.node.node import Node
from sim.roles import RoleController
from sim.specs import ClusterSpec
from sim.workload.closed_loop import ClosedLoop
from sim.workload.requests import Request

Progress = Callable[[int, int, float], None]  # requests done, requests in all, simulated seconds


@dataclass(frozen=True)
class SimulationResult:
    """One record a request, in order of arrival; one a transfer, in order of completion. wall_s: what the run took on this machine."""

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    wall_s: float


@dataclass
class Simulation:
    """requests in order of arrival. bitrate: makes one policy for each pair of nodes that meets. node: for tests of the leaps.

    Raises ValueError where a profile lacks what the model needs or requests are out of order.
    """

    cluster: ClusterSpec
    requests: Sequence[Request]
    bitrate: Callable[[], BitratePolicy]
    routing: RoutingPolicy
    slo: SLO
    node: type[Node] = Node
    concurrency: int = 0  # above 0: so many clients, each of which waits for its answer, and the requests' own times do not count
    roles: RolesPolicy | None = None  # None: every node keeps its own
    admission: AdmissionPolicy | None = None  # None: everybody is let in
    faults: FaultPlan = FaultPlan()  # noqa: RUF009  # frozen
    debug: bool = False  # check what has to hold (sim.invariants), while it runs and at its end; slower, and all records are kept
    records: list[RequestRecord] = field(default_factory=list, init=False)
    transfers: list[TransferRecord] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("there are no requests to run")
        if any(after.arrival_s < before.arrival_s for before, after in pairwise(self.requests)):
            raise ValueError("requests must be in order of arrival")
        self.clock = Clock()
        self.audit = Audit() if self.debug else None
        memory = CheckedMemory if self.debug else None
        self.fleet = Nodes(
            self.clock, self.cluster, self.bitrate, self.slo, self.node, self._done, self._ended, self._failed, self._running, memory
        )
        self.door = AdmissionControl(self.clock, self.fleet, self.routing, self.roles, self.admission, self.slo, self._lost)
        self.changes = (
            RoleController(self.clock, self.fleet, self.roles, self.cluster.rebuild_s, self._running, self._elsewhere)
            if self.roles
            else None
        )
        self.fleet.changed = self.door.someone_left
        self.watch = (
            None if self.faults.empty else Faults(self.clock, self.fleet, self.changes, self.faults, self._again, self._lost_for_good)
        )
        self.done = 0
        self.progress: Progress | None = None
        self.clients = ClosedLoop(self.clock, self.requests, self.concurrency, self._place) if self.concurrency else None
        self.clock.process(self.clients.run() if self.clients else self._arrivals())

    def run(self, progress: Progress | None = None) -> SimulationResult:
        """Until the last request is done. Raises RuntimeError, with the state of every queue, if that cannot be."""
        began_s = time.perf_counter()
        self.progress = progress
        collects = gc.isenabled()
        gc.disable()  # nothing of what a run makes refers to itself, and there is much of it
        try:
            self.clock.run()
        finally:
            if collects:
                gc.enable()
        if self.door.waiting and not (self.fleet.prefill and self.fleet.decode):
            self.door.close(f"no {'decode' if self.fleet.prefill else 'prefill'} node is left")
        if self.done < len(self.requests):
            raise RuntimeError(self._stuck())
        if self.audit is not None:
            self.audit.close(self.fleet)
        return SimulationResult(self.records, self.transfers, time.perf_counter() - began_s)

    def _running(self) -> bool:
        return self.done < len(self.requests)

    def _arrivals(self) -> Generator[Event, None, None]:
        wake = Wake(self.clock)
        for request in self.requests:
            if request.arrival_s > self.clock.now:
                yield wake.at(request.arrival_s)
            self._place(request)

    def _place(self, request: Request) -> None:
        record = RequestRecord(request.request_id, request.isl, request.osl, request.arrival_s)
        self.records.append(record)
        if self.audit is not None:
            self.audit.came(self.clock.now, record)
        self._ask(Job(request, record))

    def _ask(self, job: Job) -> None:
        if self.watch is not None:
            self.watch.watch(job)
        self.door.ask(job)

    def _lost(self, job: Job, outcome: str, reason: str) -> None:
        job.record.outcome, job.record.reason = outcome, reason
        if self.audit is not None:
            self.audit.gave_up(self.clock.now)
        if self.watch is not None:
            self.watch.forget(job)
        self._count()

    def _lost_for_good(self, job: Job, reason: str) -> None:
        self._lost(job, "failed", reason)

    def _elsewhere(self, job: Job) -> None:
        """Its node is to do other work; nothing of it has begun."""
        if self.watch is not None:
            self.watch.forget(job)
        job.record.prefill_node = job.record.decode_node = ""
        self._ask(Job(job.request, job.record))

    def _again(self, job: Job, reason: str) -> None:
        """It was lost with a node: from the beginning, if it may."""
        record = job.record
        if record.retries == self.faults.retries:
            self._lost(job, "failed", f"{reason}, and {record.retries} times before" if record.retries else reason)
            return
        job.record = replace(record)  # whoever is still at it, on a node that is lost, writes there
        record.begin_again()
        self._ask(Job(job.request, record))

    def _done(self, job: Job) -> None:
        if self.watch is not None:
            self.watch.forget(job)
        if self.audit is not None:
            self.audit.left(self.clock.now)
        job.record.expose(job.prefill_start_s, job.encode_start_s, job.wire_start_s, job.expand_start_s, job.decode_start_s)
        self._count()

    def _failed(self, job: Job, reason: str) -> None:
        """Its transfer was given up; both sides let its memory go."""
        assert job.pair is not None
        job.gone = True
        job.pair.source.release_prompt(job)
        job.pair.target.quit(job)
        self._lost(job, "failed", reason)

    def _ended(self, record: TransferRecord) -> None:
        self.transfers.append(record)
        if self.audit is not None:
            self.audit.transfers.append(record)

    def _count(self) -> None:
        self.done += 1
        if self.door.waiting:
            self.door.someone_left()
        if self.clients is not None:
            self.clients.done()
        total = len(self.requests)
        if self.progress is not None and (self.done % max(1, total // 200) == 0 or self.done == total):
            self.progress(self.done, total, self.clock.now)

    def _stuck(self) -> str:
        waiting = f", {len(self.door.waiting)} at the door" if self.door.waiting else ""
        done = f"{self.done} of {len(self.requests)} requests done at {self.clock.now:.6g} s{waiting}, and nothing more will happen"
        return f"{done}; {self.fleet.state()}"
