"""One prefill node and one decode node: quotes for transfers between them, and the jobs that wait for the pair's sender.

Routing asks the pair's bitrate policy for a quote. Before encoding, the policy is asked again, on the expected curve, for the mode, order
and depth of the whole transfer. The NIC of each end has a price, and the policy sees the higher one. A NIC's backlog is the number of
expected bytes that were decided on for it and have not passed. A refinement does not count in the backlog and pays nothing, because it
gives way to all transfers that count.

Not modelled: encoded KV that is thrown away because the policy changes its mind.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from abkt.policy.view import Decision, Mode, TransferView
from sim.job import Job
from sim.network.flows import Link
from sim.network.nic import NodeNic
from sim.transfer.context import TransferContext
from sim.transfer.pipeline import Pipeline
from sim.transfer.sender import SenderProcess
from sim.transfer.transport import FRAME_BYTES

if TYPE_CHECKING:
    from sim.node.node import Node
    from sim.transfer.refinement import Refinement


class PairEnd:
    """A node as an end of pairs: the links that it sends and receives over, and its NIC."""

    __slots__ = ("inbound", "nic", "node", "outbound")

    def __init__(self, node: Node, nic: NodeNic, outbound: Link, inbound: Link) -> None:
        self.node, self.nic, self.outbound, self.inbound = node, nic, outbound, inbound


class NodePair:
    """The path from `source` to `target`: link and NIC of each end, and the fabric between them.

    policy: the pair's own bitrate policy, once it is `used`. It is small, because a large cluster has many and most of them are idle.
    """

    __slots__ = (
        "backlog_bytes",
        "context",
        "policy",
        "queue",
        "refining",
        "sender",
        "sending",
        "source",
        "source_link",
        "source_nic",
        "target",
        "target_link",
        "target_nic",
        "used",
    )

    def __init__(self, context: TransferContext, source: PairEnd, target: PairEnd) -> None:
        self.context = context
        self.join_ends(source, target)
        self.policy = context.unused  # a quote does not change it, so the pair's own policy is made for its first transfer
        self.used = False
        self.backlog_bytes = 0.0  # expected bytes of the queue and of the transfer under way
        self.queue: deque[Job] | None = None  # None while nothing is sent
        self.sender: SenderProcess | None = None
        self.sending = False  # a transfer uses the pair's thread, and refinements wait
        self.refining: list[Refinement] | None = None  # in order of their start; only the first may send; None before the first

    def join_ends(self, source: PairEnd, target: PairEnd) -> None:
        """Stand for another pair, of whose transfers none has begun."""
        self.source, self.source_link, self.source_nic = source.node, source.outbound, source.nic
        self.target, self.target_link, self.target_nic = target.node, target.inbound, target.nic

    @property
    def path(self) -> tuple[Link, ...]:
        return (self.source_link, *self.context.fabric, self.target_link)

    # -- before the transfer -----------------------------------------------------------------------------------------------------

    def quote_s(self, tokens: int, arrival_s: float) -> float:
        """Expected seconds from the end of prefill to usable KV, for a transfer of the next prompt.

        With G layer groups, the prefill pass hides the transfer of up to G - 1 groups while it lasts. At least the last group remains.
        """
        context, source, policy = self.context, self.source, self.policy
        costs, now_s, sent = source.costs, context.clock.now, max(1, tokens)
        pass_s, groups = costs.prefill_s(tokens), context.transport.layer_groups
        hidden_s = pass_s if groups > 1 else 0.0
        view = costs.view(sent, self.deadline_s(tokens, arrival_s), self.price(), hidden_s=hidden_s)
        decision = policy.decide(now_s + source.queued_s + pass_s - hidden_s, view)
        size_bytes, bits = wire_size(decision, view)
        calls = self.calls(decision.mode, sent, size_bytes)
        rate = policy.estimate_bytes_per_s(now_s)
        if rate != rate:  # NaN: the policy has no estimate
            rate = self.fair_share(size_bytes, calls)
        codec_s = costs.encode_s(sent, decision) + self.target.costs.expand_s(sent, decision.mode, bits, decision.coder)
        busy_s = codec_s + ((self.backlog_bytes + size_bytes) / rate if rate > 0 else math.inf)
        if groups > 1:
            busy_s = max(busy_s / groups, busy_s - hidden_s * (groups - 1) / groups)
        busy_s += self.calls_s(calls)
        return busy_s + (self.one_way_trips() + 1) * context.delay_s if context.delay_s > 0 else busy_s

    def fair_share(self, size_bytes: float, calls: int) -> float:
        """Bytes/s that a new flow would get if every link were shared equally."""
        links = min((link.bytes_per_s / (len(link.flows) + 1) for link in self.path), default=math.inf)
        return min(self.limit_bytes_per_s(size_bytes, calls), links)

    def price(self) -> float:
        """Distortion per byte: the higher price of the two ends."""
        now_s = self.context.clock.now
        ours, theirs = self.source_nic.per_byte(now_s), self.target_nic.per_byte(now_s)
        return ours if ours >= theirs else theirs

    def deadline_s(self, tokens: int, arrival_s: float) -> float:
        """Time by which the KV must be usable, from abkt.profile.expect.kv_deadline_s, which the real frontend uses too."""
        return arrival_s + self.context.slo.ttft_s - self.target.costs.alone_s(tokens)

    # -- what the transport adds -------------------------------------------------------------------------------------------------

    def calls(self, mode: Mode, tokens: int, wire_bytes: float) -> int:
        context, source = self.context, self.source
        if mode != "raw":
            frames = math.ceil(wire_bytes / FRAME_BYTES)
            return frames if frames > context.least_calls else context.least_calls
        return context.transport.raw_calls(source.memory.blocks_for(tokens), source.costs.profile.model)

    def calls_s(self, calls: int) -> float:
        ranks = self.context.prefill_tp  # ranks send in parallel, so only the calls of one of them take time
        return self.source.costs.call_s * (calls if ranks == 1 else -(-calls // ranks))

    def limit_bytes_per_s(self, wire_bytes: float, calls: int) -> float:
        context = self.context
        return context.transport.limit_bytes_per_s(self.source.costs.byte_s, wire_bytes, calls, context.delay_s)

    def one_way_trips(self) -> int:
        """Messages, one after another, before the first byte leaves: the offer and the grant; with pull also the notice and the request."""
        return 4 if self.context.transport.pull else 2

    # -- the transfer ------------------------------------------------------------------------------------------------------------

    def begin_pass(self, job: Job, pass_s: float) -> None:
        """The prefill pass begins and takes pass_s; with layer groups, KV is sent while it runs."""
        if self.context.transport.layer_groups > 1:
            Pipeline(self, job, pass_s)

    def decide(self, job: Job, hidden_s: float = 0.0) -> None:
        """Ask the policy for the mode, order and depth of the whole transfer. hidden_s: see TransferView."""
        request, costs, now_s, stage = job.request, self.source.costs, self.context.clock.now, job.transfer
        if request.hash_ids and self.sender is None:
            self.target.reservations.hold_prefix(job)
        sent, deadline_s = job.sent_tokens, self.deadline_s(request.isl, request.arrival_s)
        own_slope = costs.own_slope(sent, request.request_id)
        if not self.used:
            self.used, self.policy = True, self.context.bitrate()
        stage.view = view = costs.view(sent, deadline_s, self.price(), own_slope, hidden_s)
        stage.decision = self.policy.decide(now_s, view)
        stage.expected_bytes, _ = wire_size(stage.decision, view)
        self.backlog_bytes += stage.expected_bytes
        self.source_nic.price.enter(now_s, stage.expected_bytes)
        self.target_nic.price.enter(now_s, stage.expected_bytes)
        stage.in_backlog = True
        stage.raw_bytes = view.raw_bytes

    def enqueue(self, job: Job) -> None:
        """The KV or its first layer group is encoded: queue it behind the pair's earlier jobs."""
        if self.queue is None:
            self.queue = deque()
        self.queue.append(job)
        if self.sender is None:
            context = self.context
            self.sender = context.idle.pop() if context.idle else SenderProcess(context)
            self.sender.begin(self)

    def leave_backlog(self, job: Job) -> None:
        """Remove the job's bytes from the backlog, because they have passed or will not be sent."""
        job.transfer.in_backlog = False
        self.backlog_bytes = self.backlog_bytes - job.transfer.expected_bytes if self.queue else 0.0
        self.source_nic.price.leave(job.transfer.expected_bytes)
        self.target_nic.price.leave(job.transfer.expected_bytes)

    def abort(self, job: Job) -> bool:
        """Abort the job. Returns True if it was in the queue or under way; then its memory is released on both sides."""
        if self.queue and job in self.queue:
            job.aborted = True
            self.queue.remove(job)
            self.leave_backlog(job)
            self.release(job)
            return True
        if self.sender is None or not self.sender.abort(job):
            return False
        job.aborted = True
        return True

    def release(self, job: Job) -> None:
        """Release the job's memory on both sides, because its KV will not arrive."""
        self.source.prompts.release(job)
        self.target.reservations.close(job)

    @property
    def idle(self) -> bool:
        return self.sender is None

    # -- refinements during decoding ---------------------------------------------------------------------------------------------

    def begin_sending(self) -> None:
        """A transfer takes the pair's thread: pause refinements."""
        self.sending = True
        if self.refining:
            self.refining[0].pause()

    def end_sending(self) -> None:
        self.sending = False
        if self.refining:
            self.refining[0].resume()


def wire_size(decision: Decision, view: TransferView) -> tuple[float, float]:
    """(wire bytes, mean bits per value of a stream) of a decision, on this view's curve."""
    if decision.mode != "stream":
        return (float(view.raw_bytes) if decision.mode == "raw" else view.lossless_bytes), 0.0
    curve = view.curve(decision.order, decision.coder)
    share = view.entropy_share if decision.coder == "entropy" else 1.0
    return share * curve.bytes[decision.cut], curve.bits[decision.cut]
