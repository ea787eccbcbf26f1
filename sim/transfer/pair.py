"""One prefill node and one decode node: what a transfer between them would take, and those that wait for the pair's sender.

The pair's bitrate policy is asked for a quote by routing, and before encoding, on the expected curve, for mode, order and depth, which
stand for the whole transfer. Each end's NIC has a price, of which the policy sees the higher: its backlog is what was chosen for it and
has not passed, in expected bytes; what refines behind the start does not count and pays nothing, since it gives way to all that count.

Not modelled: encoded KV that is thrown away because the policy thinks better of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abkt.policy.view import BitratePolicy, Decision, Mode, TransferView
from abkt.records import SLO, TransferRecord
from sim.clock import Clock
from sim.network.flows import Link, Network
from sim.network.nic import NodeNic
from sim.node.job import Job
from sim.transfer.pipeline import Pipeline
from sim.transfer.sender import SenderProcess
from sim.transfer.transport import TransportModel

if TYPE_CHECKING:
    from sim.node.node import Node
    from sim.transfer.refinement import Refinement


@dataclass(eq=False, slots=True)
class TransferContext:
    """What all transfers of a cluster share. ended(record): called with each transfer's record when nothing of it is to come; failed(job,
    reason): with a request whose transfer was given up. idle: senders that no pair has."""

    clock: Clock
    network: Network
    slo: SLO
    ended: Callable[[TransferRecord], None]
    failed: Callable[[Job, str], None]
    transport: TransportModel = TransportModel()  # noqa: RUF009  # frozen
    usd_per_gb: float = 0.0
    delay_s: float = 0.0
    idle: list[SenderProcess] = field(default_factory=list)


class NodePair:
    """nics: of the two ends. share(): bytes/s a new flow would get, if links are fair."""

    __slots__ = ("backlog_bytes", "carrier", "nics", "path", "policy", "queue", "refining", "sender", "sending", "source", "target")

    def __init__(
        self,
        carrier: TransferContext,
        source: Node,
        target: Node,
        path: tuple[Link, ...],
        nics: tuple[NodeNic, NodeNic],
        policy: BitratePolicy,
    ) -> None:
        self.carrier = carrier
        self.source = source
        self.target = target
        self.path = path
        self.nics = nics
        self.policy = policy
        self.backlog_bytes = 0.0  # expected, of the queue and of the transfer under way
        self.queue: deque[Job] | None = None  # None while nothing is sent: of a large cluster's many pairs few are at work
        self.sender: SenderProcess | None = None
        self.sending = False  # a transfer has the pair's thread, and what refines waits
        self.refining: list[Refinement] = []  # in order of starting; the first may send

    # -- before the transfer -----------------------------------------------------------------------------------------------------

    def quote_s(self, tokens: int, arrival_s: float, held_tokens: int = 0) -> float:
        """Seconds a transfer of the next prompt would take, from the end of its prefill to usable KV. held_tokens: see Job.

        Of G layer groups the pass hides G - 1, as far as it lasts: what is left is the last one at least.
        """
        carrier, source, policy = self.carrier, self.source, self.policy
        costs, now_s, sent = source.costs, carrier.clock._now, max(1, tokens - held_tokens)
        pass_s, groups = costs.prefill_s(tokens), carrier.transport.layer_groups
        hidden_s = pass_s if groups > 1 else 0.0
        view = costs.view(sent, self.deadline_s(tokens, arrival_s), self.price(), hidden_s=hidden_s)
        decision = policy.decide(now_s + source.queued_s + pass_s - hidden_s, view)
        size_bytes, bits = outcome(decision, view)
        calls = self.calls(decision.mode, sent, size_bytes)
        rate = policy.estimate_bytes_per_s(now_s)
        if rate != rate:  # nan: the policy has no estimate
            rate = self.share(size_bytes, calls)
        codec_s = costs.encode_s(sent, decision) + self.target.costs.expand_s(sent, decision.mode, bits, decision.coder)
        busy_s = codec_s + ((self.backlog_bytes + size_bytes) / rate if rate > 0 else math.inf)
        if groups > 1:
            busy_s = max(busy_s / groups, busy_s - hidden_s * (groups - 1) / groups)
        busy_s += self.calls_s(calls)
        return busy_s + (self.ways() + 1) * carrier.delay_s if carrier.delay_s > 0 else busy_s

    def share(self, size_bytes: float, calls: int) -> float:
        links = min((link.bytes_per_s / (len(link.flows) + 1) for link in self.path), default=math.inf)
        return min(self.limit_bytes_per_s(size_bytes, calls), links)

    def price(self) -> float:
        """Distortion per byte: the higher of the two ends'."""
        now_s = self.carrier.clock._now
        source, target = self.nics
        ours, theirs = source.per_byte(now_s), target.per_byte(now_s)
        return ours if ours >= theirs else theirs

    def deadline_s(self, tokens: int, arrival_s: float) -> float:
        """When KV must be usable: as abkt.profile.expect.kv_deadline_s, which the real frontend uses."""
        return arrival_s + self.carrier.slo.ttft_s - self.target.costs.alone_s(tokens)

    # -- what the transport adds -------------------------------------------------------------------------------------------------

    def calls(self, mode: Mode, tokens: int, wire_bytes: float) -> int:
        transport, source = self.carrier.transport, self.source
        if mode != "raw":
            return transport.coded_calls(wire_bytes)
        return transport.raw_calls(source.memory.blocks_for(tokens), source.costs.profile.model)

    def calls_s(self, calls: int) -> float:
        return self.source.costs.call_s * self.carrier.transport.in_turn(calls)

    def limit_bytes_per_s(self, wire_bytes: float, calls: int) -> float:
        carrier = self.carrier
        return carrier.transport.limit_bytes_per_s(self.source.costs.byte_s, wire_bytes, calls, carrier.delay_s)

    def ways(self) -> int:
        """Between the nodes, before the first byte leaves: the offer's and the grant's, and with pull the notice's and the request's."""
        return 4 if self.carrier.transport.pull else 2

    # -- the transfer ------------------------------------------------------------------------------------------------------------

    def begin(self, job: Job, pass_s: float) -> None:
        """The pass over its prompt begins, and takes so long; while it runs, KV may travel already."""
        if self.carrier.transport.layer_groups > 1:
            Pipeline(self, job, pass_s)

    def choose(self, job: Job, hidden_s: float = 0.0) -> None:
        """Ask the policy for mode, order and depth, which stand for the whole transfer. hidden_s: see TransferView."""
        request, costs, now_s = job.request, self.source.costs, self.carrier.clock._now
        if request.hash_ids and self.sender is None:
            self.target.hold_prefix(job)
        sent, deadline_s = job.sent_tokens, self.deadline_s(request.isl, request.arrival_s)
        own_slope = costs.own_slope(sent, request.request_id)
        job.view = view = costs.view(sent, deadline_s, self.price(), own_slope, hidden_s)
        job.decision = self.policy.decide(now_s, view)
        job.expected_bytes, _ = outcome(job.decision, view)
        self.backlog_bytes += job.expected_bytes
        for nic in self.nics:
            nic.price.enter(now_s, job.expected_bytes)
        job.chosen = True
        job.record.raw_bytes = view.raw_bytes

    def send(self, job: Job) -> None:
        if self.queue is None:
            self.queue = deque()
        self.queue.append(job)
        if self.sender is None:
            carrier = self.carrier
            self.sender = carrier.idle.pop() if carrier.idle else SenderProcess(carrier)
            self.sender.begin(self)

    def forget(self, job: Job) -> None:
        """Its bytes wait for nothing any more: they are there, or will not come."""
        job.chosen = False
        self.backlog_bytes = self.backlog_bytes - job.expected_bytes if self.queue else 0.0
        for nic in self.nics:
            nic.price.leave(job.expected_bytes)

    def withdraw(self, job: Job) -> bool:
        """It is given up. True if it waited for the sender or was under way: then it leaves no memory taken on either side."""
        if self.queue and job in self.queue:
            job.gone = True
            self.queue.remove(job)
            self.forget(job)
            self.let_go(job, held=job.reserved_s == job.reserved_s)
            return True
        if self.sender is None or not self.sender.withdraw(job):
            return False
        job.gone = True
        return True

    def let_go(self, job: Job, held: bool) -> None:
        """Nothing of it will come. held: memory to decode is reserved for it."""
        self.source.release_prompt(job)
        self.target.quit(job, held)

    @property
    def idle(self) -> bool:
        return self.sender is None

    # -- behind the start --------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """A transfer takes the thread: what refines gives way."""
        self.sending = True
        if self.refining:
            self.refining[0].pause()

    def free(self) -> None:
        self.sending = False
        if self.refining:
            self.refining[0].go_on()


def outcome(decision: Decision, view: TransferView) -> tuple[float, float]:
    """(wire bytes, mean bits per value of a stream) of a decision, on this view's curve."""
    if decision.mode != "stream":
        return (float(view.raw_bytes) if decision.mode == "raw" else view.lossless_bytes), 0.0
    curve = view.slope if decision.order == "slope" else view.uniform
    share = view.entropy_share if decision.coder == "entropy" else 1.0
    return share * curve.bytes[decision.cut], curve.bits[decision.cut]
