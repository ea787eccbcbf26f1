"""The cluster: which nodes there are, and a run of requests through them.

Not modelled: nodes that change roles, fail or slow down; requests that are retried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from simpy.events import Event

from abkt.policy.view import BitratePolicy, RequestView, RoutingPolicy
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.clock import Clock, Wake
from sim.closed_loop import ClosedLoop
from sim.fleet import Fleet
from sim.job import Job
from sim.node import Node
from sim.specs import Cluster, Engine, NodeSpec
from sim.workload import Request

__all__ = ["Cluster", "Engine", "NodeSpec", "Simulation", "SimulationResult"]

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

    cluster: Cluster
    requests: Sequence[Request]
    bitrate: Callable[[], BitratePolicy]
    routing: RoutingPolicy
    slo: SLO
    node: type[Node] = Node
    concurrency: int = 0  # above 0: so many clients, each of which waits for its answer, and the requests' own times do not count
    records: list[RequestRecord] = field(default_factory=list, init=False)
    transfers: list[TransferRecord] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("there are no requests to run")
        if any(after.arrival_s < before.arrival_s for before, after in pairwise(self.requests)):
            raise ValueError("requests must be in order of arrival")
        self.clock = Clock()
        self.fleet = Fleet(self.clock, self.cluster, self.bitrate, self.slo, self.node, self._done, self.transfers.append)
        self.done = 0
        self.progress: Progress | None = None
        self.clients = ClosedLoop(self.clock, self.requests, self.concurrency, self._place) if self.concurrency else None
        self.clock.process(self.clients.run() if self.clients else self._arrivals())

    def run(self, progress: Progress | None = None) -> SimulationResult:
        """Until the last request is done. Raises RuntimeError, with the state of every queue, if that cannot be."""
        began_s = time.perf_counter()
        self.progress = progress
        self.clock.run()
        if self.done < len(self.requests):
            raise RuntimeError(self._stuck())
        return SimulationResult(self.records, self.transfers, time.perf_counter() - began_s)

    def _arrivals(self) -> Generator[Event, None, None]:
        wake = Wake(self.clock)
        for request in self.requests:
            if request.arrival_s > self.clock.now:
                yield wake.at(request.arrival_s)
            self._place(request)

    def _place(self, request: Request) -> None:
        """Route the request to a pair of nodes that can hold it, or reject it."""
        isl, arrival_s = request.isl, request.arrival_s
        record = RequestRecord(request.request_id, isl, request.osl, arrival_s)
        self.records.append(record)
        fleet, routing = self.fleet, self.routing
        decode_tokens = isl + request.osl if request.osl > 1 else 0  # a single token comes from prefill
        prefill, decode = fleet.able(isl, decode_tokens)
        for role, tokens, able, nodes in (("prefill", isl, prefill, fleet.prefill), ("decode", decode_tokens, decode, fleet.decode)):
            if not able:
                most = max(node.memory.tokens for node in nodes)
                record.outcome, record.reason = "rejected", f"needs {tokens} tokens of KV; the largest {role} node holds {most}"
                self._count()
                return

        def quote_s(p: int, d: int) -> float:
            return fleet.pair(prefill[p], decode[d]).quote_s(isl, arrival_s)

        view = RequestView(request.request_id, isl, request.osl, arrival_s, request.hash_ids)
        p, d = routing.decide(self.clock.now, view, prefill, decode, quote_s)
        pair = fleet.pair(prefill[p], decode[d])
        record.prefill_node = pair.source.name
        job = Job(request, record, pair)
        if request.osl > 1:
            record.decode_node = pair.target.name
            pair.target.promise(job)
        pair.source.submit(job)

    def _done(self, job: Job) -> None:
        job.record.expose(job.prefill_start_s, job.encode_start_s, job.wire_start_s, job.expand_start_s, job.decode_start_s)
        self._count()

    def _count(self) -> None:
        self.done += 1
        if self.clients is not None:
            self.clients.done()
        total = len(self.requests)
        if self.progress is not None and (self.done % max(1, total // 200) == 0 or self.done == total):
            self.progress(self.done, total, self.clock.now)

    def _stuck(self) -> str:
        done = f"{self.done} of {len(self.requests)} requests done at {self.clock.now:.6g} s, and nothing more will happen"
        return f"{done}; {self.fleet.state()}"
