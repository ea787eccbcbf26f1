"""A simulation: it runs requests through a cluster and returns their records.

Not modelled: clients that ask again after a rejection.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from abkt.policy.admission.base import AdmissionPolicy
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.routing.base import RoutingPolicy
from abkt.policy.view import BitratePolicy
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.admission import AdmissionControl
from sim.clock import Clock
from sim.faults import FaultInjector, FaultPlan
from sim.invariants import Audit, CheckedMemory
from sim.job import Job
from sim.node.node import Node
from sim.nodes import Nodes
from sim.records import FinishedRecords
from sim.roles import RoleController
from sim.specs import ClusterSpec
from sim.timers import Process, Wake
from sim.workload.closed_loop import ClosedLoop
from sim.workload.requests import Request

Progress = Callable[[int, int, float], None]  # requests done, requests in all, simulated seconds


@dataclass(frozen=True)
class SimulationResult:
    """The records of a run.

    Attributes
    ----------
    requests : one record per request, in order of arrival.
    transfers : one record per transfer, in order of completion.
    wall_s : seconds that the run took on this machine.
    """

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    wall_s: float


@dataclass
class Simulation:
    """A simulated prefill-decode cluster and the requests that run through it.

    Parameters
    ----------
    cluster : nodes, links and engines.
    requests : the requests, in order of arrival.
    bitrate : makes a bitrate policy; called once for each pair of nodes between which something is sent, and once for the quotes of all
        other pairs.
    routing : chooses the pair of nodes for each request.
    slo : the latencies that deadlines are computed from, in seconds.
    node : the class of the nodes; only tests of the closed forms give another class.
    concurrency : number of clients in a closed loop, each of which waits for its answer before it sends the next request; the requests' own
        arrival times are then ignored. 0: an open loop, requests arrive at their own times.
    roles : policy that changes the nodes' roles; None: every node keeps its role.
    admission : policy that admits requests; None: every request is admitted at once.
    faults : nodes that die or are slow, and a timeout of requests.
    think_s : seconds from an answer to the client's next request in a closed loop.
    debug : check the laws of sim.invariants during the run and at its end; this is slower and keeps all records.

    Raises
    ------
    ValueError : the profile lacks a table that the simulator needs, requests are missing or out of order, or a fault names an unknown node.

    `records` and `transfers` fill while the simulation runs. `take` empties them, so that a long run need not keep all records in memory.
    """

    cluster: ClusterSpec
    requests: Sequence[Request]
    bitrate: Callable[[], BitratePolicy]
    routing: RoutingPolicy
    slo: SLO
    node: type[Node] = Node
    concurrency: int = 0
    roles: RolesPolicy | None = None
    admission: AdmissionPolicy | None = None
    faults: FaultPlan = FaultPlan()  # noqa: RUF009  # frozen
    debug: bool = False
    think_s: float = 0.0
    transfers: list[TransferRecord] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("there are no requests to run")
        if len({request.request_id for request in self.requests}) < len(self.requests):
            raise ValueError("two requests have the same request_id; records could not tell them apart")
        if any(after.arrival_s < before.arrival_s for before, after in pairwise(self.requests)):
            raise ValueError("requests must be in order of arrival")
        self.clock = Clock()
        self.audit = Audit() if self.debug else None
        self.nodes = Nodes(
            self.clock,
            self.cluster,
            self.bitrate,
            self.slo,
            self.node,
            done=self._done,
            ended=self.transfers.append,
            failed=self._fail_transfer,
            running=self._running,
            memory=CheckedMemory if self.debug else None,
        )
        self.admission_control = AdmissionControl(self.clock, self.nodes, self.routing, self.roles, self.admission, self.slo, self._lose)
        self.role_controller = (
            RoleController(self.clock, self.nodes, self.roles, self.cluster.rebuild_s, self._running, self._move) if self.roles else None
        )
        if not self.nodes.prefill:
            raise ValueError("the cluster has no prefill node; it needs at least one, or roles with which a node does both")
        self.nodes.changed = self.admission_control.admit_waiting
        self.fault_injector = (
            None if self.faults.empty else FaultInjector(self.clock, self.nodes, self.role_controller, self.faults, self._retry, self._fail)
        )
        self.front_s = max(node.costs.first_token_s for node in self.nodes.all)  # a request waits so long in the front end
        self.arrived = 0
        self.done = 0
        self.finished = FinishedRecords()
        self.progress: Progress | None = None
        self.clients = ClosedLoop(self.clock, self.requests, self.concurrency, self._arrive, self.think_s) if self.concurrency else None
        self.clock.process(self.clients.run() if self.clients else self._arrivals())

    @property
    def records(self) -> list[RequestRecord]:
        """Records in order of arrival, up to the first request that has not ended."""
        return self.finished.collect()

    def take(self) -> tuple[list[RequestRecord], list[TransferRecord]]:
        """The request records (as in `records`) and transfer records that no earlier call has taken."""
        taken = list(self.records), list(self.transfers)
        self.records.clear()
        self.transfers.clear()
        if self.audit is not None:
            self.audit.keep(*taken)
        return taken

    def run(self, progress: Progress | None = None) -> SimulationResult:
        """Run until the last request is done.

        Parameters
        ----------
        progress : called about 200 times in a run, with (requests done, requests in all, simulated seconds).

        Raises
        ------
        RuntimeError : requests are left but no event is scheduled; the message has the state of every queue.
        """
        began_s = time.perf_counter()
        self.progress = progress
        collects = gc.isenabled()
        gc.disable()  # a run makes many objects and no reference cycles
        try:
            self.clock.run()
        finally:
            if collects:
                gc.enable()
        if self.admission_control.waiting and not (self.nodes.prefill and self.nodes.decode):
            self.admission_control.close(f"no {'decode' if self.nodes.prefill else 'prefill'} node is left")
        if self.done < len(self.requests):
            raise RuntimeError(self._stuck())
        if self.audit is not None:
            self.audit.keep(self.records, self.transfers)
            self.audit.close(self.nodes)
        return SimulationResult(self.records, self.transfers, time.perf_counter() - began_s)

    def _running(self) -> bool:
        return self.done < len(self.requests)

    # -- requests arrive ---------------------------------------------------------------------------------------------------------

    def _arrivals(self) -> Process:
        wake = Wake(self.clock)
        for request in self.requests:
            if request.arrival_s > self.clock.now:
                yield wake.at(request.arrival_s)
            self._arrive(request)

    def _arrive(self, request: Request) -> None:
        if self.audit is not None:
            self.audit.came(self.clock.now)
        job = Job(request, self.arrived)
        self.arrived += 1
        if self.front_s:
            wake = Wake(self.clock)
            wake.waiter = lambda: self._submit(job)
            wake.after(self.front_s)
        else:
            self._submit(job)

    def _submit(self, job: Job) -> None:
        if self.fault_injector is not None:
            self.fault_injector.track(job)
        self.admission_control.submit(job)

    def _move(self, job: Job) -> None:
        """Submit the job again: its node changes its role, and no work on the job has begun."""
        if self.fault_injector is not None:
            self.fault_injector.untrack(job)
        self._submit(Job(job.request, job.index, job.retries, job.cost_usd))

    def _retry(self, job: Job, reason: str) -> None:
        """The job was lost with a node: start over, unless there were too many attempts. The lost attempt still counts as cost."""
        if job.retries == self.faults.retries:
            self._lose(job, "failed", f"{reason}, and {job.retries} times before" if job.retries else reason)
        else:
            self._submit(Job(job.request, job.index, job.retries + 1, job.cost_usd))

    # -- requests end ------------------------------------------------------------------------------------------------------------

    def _done(self, job: Job) -> None:
        if self.fault_injector is not None:
            self.fault_injector.untrack(job)
        if self.audit is not None:
            self.audit.left(self.clock.now)
        self._end(job)

    def _lose(self, job: Job, outcome: str, reason: str) -> None:
        job.outcome, job.reason = outcome, reason
        if self.audit is not None:
            self.audit.gave_up(self.clock.now)
        if self.fault_injector is not None:
            self.fault_injector.untrack(job)
        self._end(job)

    def _fail(self, job: Job, reason: str) -> None:
        self._lose(job, "failed", reason)

    def _fail_transfer(self, job: Job, reason: str) -> None:
        """The job's transfer was given up: release its memory on both sides."""
        assert job.pair is not None
        job.aborted = True
        job.pair.release(job)
        self._fail(job, reason)

    def _end(self, job: Job) -> None:
        self.finished.add(job)
        self.done += 1
        if self.admission_control.waiting:
            self.admission_control.admit_waiting()
        if self.clients is not None:
            self.clients.done()
        total = len(self.requests)
        if self.progress is not None and (self.done % max(1, total // 200) == 0 or self.done == total):
            self.progress(self.done, total, self.clock.now)

    def _stuck(self) -> str:
        waiting = f", {len(self.admission_control.waiting)} waiting for admission" if self.admission_control.waiting else ""
        done = f"{self.done} of {len(self.requests)} requests done at {self.clock.now:.6g} s{waiting}, and no event is left"
        return f"{done}; {self.nodes.state()}"
