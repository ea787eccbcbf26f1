"""The cluster: which nodes there are, and a run of requests through them.

Not modelled: nodes that change roles, fail or slow down; requests that are retried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from simpy.events import Event

from abkt.capacity import Capacity
from abkt.policy.price import Price
from abkt.policy.view import BitratePolicy, RequestView, RoutingPolicy
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.clock import Clock, Wake
from sim.closed_loop import ClosedLoop
from sim.cost import Costs
from sim.decode import DecodeNode
from sim.job import Job
from sim.memory import Memory
from sim.network import Network
from sim.prefill import PrefillNode
from sim.transfer import Pair
from sim.workload import Request

Node = TypeVar("Node", PrefillNode, DecodeNode)
Progress = Callable[[int, int, float], None]  # requests done, requests in all, simulated seconds


@dataclass(frozen=True)
class NodeSpec:
    """One instance. kv_tokens: KV memory; nic: its own link, each way; usd_per_hour: of the whole instance."""

    name: str
    profile: Profile
    kv_tokens: int
    nic: Capacity
    usd_per_hour: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """max_batch: requests in one decode iteration. fabric: shared by all flows, if any. usd_per_gb: of wire bytes (10^9) between nodes.

    delay_s: propagation between nodes, each way.
    """

    prefill: tuple[NodeSpec, ...]
    decode: tuple[NodeSpec, ...]
    max_batch: int = 64
    block_tokens: int = 16
    fabric: Capacity | None = None
    usd_per_gb: float = 0.0
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        for role, nodes in (("prefill", self.prefill), ("decode", self.decode)):
            if not nodes:
                raise ValueError(f"the cluster has no {role} node; it needs at least one")
        if self.max_batch < 1 or self.block_tokens < 1:
            raise ValueError(f"max_batch is {self.max_batch} and block_tokens {self.block_tokens}; both must be at least 1")
        nodes = (*self.prefill, *self.decode)
        if len({node.name for node in nodes}) < len(nodes):
            raise ValueError("two nodes of the cluster have the same name")
        for node in nodes:
            if node.kv_tokens < self.block_tokens:
                raise ValueError(f"node {node.name} holds {node.kv_tokens} tokens of KV, less than one block of {self.block_tokens}")
        if len({(m.layers, m.kv_heads, m.head_dim, m.dtype) for m in (node.profile.model for node in nodes)}) > 1:
            raise ValueError("the nodes' profiles are of models with different KV; prefill and decode must run the same model")


@dataclass(frozen=True)
class SimulationResult:
    """One record a request, in order of arrival; one a transfer, in order of completion. wall_s: what the run took on this machine."""

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    wall_s: float


@dataclass
class Simulation:
    """requests in order of arrival. bitrate: makes one policy for each pair of nodes that meets. decode_node: for tests of the leaps.

    Raises ValueError where a profile lacks what the model needs or requests are out of order.
    """

    cluster: Cluster
    requests: Sequence[Request]
    bitrate: Callable[[], BitratePolicy]
    routing: RoutingPolicy
    slo: SLO
    decode_node: type[DecodeNode] = DecodeNode
    concurrency: int = 0  # above 0: so many clients, each of which waits for its answer, and the requests' own times do not count
    records: list[RequestRecord] = field(default_factory=list, init=False)
    transfers: list[TransferRecord] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("there are no requests to run")
        if any(after.arrival_s < before.arrival_s for before, after in pairwise(self.requests)):
            raise ValueError("requests must be in order of arrival")
        cluster = self.cluster
        self.clock = Clock()
        self.network = Network(self.clock)
        profiles = {id(node.profile): node.profile for node in (*cluster.prefill, *cluster.decode)}  # nodes of a kind share one
        costs = {key: Costs(profile) for key, profile in profiles.items()}
        self.prefill = [
            PrefillNode(
                self.clock, node.name, costs[id(node.profile)], Memory(node.kv_tokens, cluster.block_tokens), node.usd_per_hour, self._done
            )
            for node in cluster.prefill
        ]
        self.decode = [
            self.decode_node(
                self.clock,
                node.name,
                costs[id(node.profile)],
                Memory(node.kv_tokens, cluster.block_tokens),
                node.usd_per_hour,
                cluster.max_batch,
                self._done,
            )
            for node in cluster.decode
        ]
        self.prices = {node.name: Price(max(node.nic.bytes_per_s)) for node in (*cluster.prefill, *cluster.decode)}
        self.links = {node.name: self.network.link(node.name, node.nic) for node in (*cluster.prefill, *cluster.decode)}
        self.fabric = (self.network.link("fabric", cluster.fabric),) if cluster.fabric else ()
        self.pairs: dict[tuple[PrefillNode, DecodeNode], Pair] = {}
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
        decode_tokens = isl + request.osl if request.osl > 1 else 0  # a single token comes from prefill
        prefill, decode = _that_hold(self.prefill, isl), _that_hold(self.decode, decode_tokens)
        for role, tokens, able, nodes in (("prefill", isl, prefill, self.prefill), ("decode", decode_tokens, decode, self.decode)):
            if not able:
                most = max(node.memory.tokens for node in nodes)
                record.outcome, record.reason = "rejected", f"needs {tokens} tokens of KV; the largest {role} node holds {most}"
                self._count()
                return

        def quote_s(p: int, d: int) -> float:
            return self._pair(prefill[p], decode[d]).quote_s(isl, arrival_s)

        view = RequestView(request.request_id, isl, request.osl, arrival_s)
        p, d = self.routing.decide(self.clock.now, view, prefill, decode, quote_s)
        pair = self._pair(prefill[p], decode[d])
        record.prefill_node = pair.source.name
        job = Job(request, pair, record)
        if request.osl > 1:
            record.decode_node = pair.target.name
            pair.target.promise(job)
        pair.source.submit(job)

    def _pair(self, source: PrefillNode, target: DecodeNode) -> Pair:
        pair = self.pairs.get((source, target))
        if pair is None:
            path = (self.links[source.name], *self.fabric, self.links[target.name])
            prices = self.prices[source.name], self.prices[target.name]
            usd_per_gb, delay_s, policy = self.cluster.usd_per_gb, self.cluster.delay_s, self.bitrate()
            pair = self.pairs[source, target] = Pair(
                self.clock, self.network, source, target, path, prices, policy, self.slo, usd_per_gb, self.transfers.append, delay_s
            )
        return pair

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
        prefill = [f"{n.name}: {len(n.queue)} queued, {n.memory}" for n in self.prefill]
        decode = [f"{n.name}: {n.state}, {len(n.batch)} in the batch, {len(n.waiting)} to expand, {n.memory}" for n in self.decode]
        pairs = [f"{p.source.name} to {p.target.name}: {len(p.queue)} to send" for p in self.pairs.values() if not p.idle]
        done = f"{self.done} of {len(self.requests)} requests done at {self.clock.now:.6g} s, and nothing more will happen"
        return "; ".join([done, *prefill, *decode, *pairs])


def _that_hold(nodes: list[Node], tokens: int) -> list[Node]:
    """All of them, but for a request that is too large for some."""
    return nodes if tokens <= min(n.memory.tokens for n in nodes) else [n for n in nodes if tokens <= n.memory.tokens]
