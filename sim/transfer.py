"""Transfers between one prefill node and one decode node: in order, one at a time, as one sender thread for each peer does it.

The sender waits until the decode side has reserved memory for the whole request, then its bytes flow at the max-min fair rate,
at most at the 1/beta that the transport itself manages; alpha for each call comes after the last byte. The pair's bitrate policy is
asked before encoding (on the expected curve), then, on the request's own measured curve, when the flow starts, when its rate
changes, and when it has reached the cut: the cut may move while it flows. A transfer record starts with its flow; a request's exposed
wire time also holds the waits for earlier transfers of the pair and for memory.

Not modelled: encoding that overlaps sending, acknowledgement delay, lost frames, retries, refinement behind the start.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator

from simpy.events import Event

from abkt.policy.view import BitratePolicy, Curve, Decision, GoodputSample, TransferView
from abkt.records import SLO, TransferRecord
from sim.clock import Clock, Wake
from sim.decode import DecodeNode
from sim.job import Job
from sim.network import Flow, Link, Network
from sim.prefill import PrefillNode


class Pair:
    """delivered(record): called with the record of each transfer that ends. share(): bytes/s a new flow would get, if links are fair."""

    def __init__(
        self,
        clock: Clock,
        network: Network,
        source: PrefillNode,
        target: DecodeNode,
        path: tuple[Link, ...],
        policy: BitratePolicy,
        slo: SLO,
        usd_per_gb: float,
        delivered: Callable[[TransferRecord], None],
    ) -> None:
        self.clock = clock
        self.network = network
        self.source = source
        self.target = target
        self.path = path
        self.policy = policy
        self.slo = slo
        self.usd_per_byte = usd_per_gb / 1e9
        self.delivered = delivered
        self.limit_bytes_per_s = 1 / source.costs.byte_s if source.costs.byte_s > 0 else math.inf
        self.queue: deque[Job] = deque()
        self.backlog_bytes = 0.0  # expected, of the queue and of the transfer under way
        self.wake = Wake(clock)
        self.idle = True
        clock.process(send(self))

    # -- before the transfer -----------------------------------------------------------------------------------------------------

    def quote_s(self, tokens: int, arrival_s: float) -> float:
        """Seconds a transfer of the next prompt would take, from the end of its prefill to usable KV."""
        now_s, costs = self.clock.now, self.source.costs
        view = costs.view(tokens, self.deadline_s(tokens, arrival_s))
        decision = self.policy.decide(now_s + self.source.queued_s + costs.prefill_s(tokens), view)
        size_bytes, bits = _outcome(decision, view)
        rate = self.policy.estimate_bytes_per_s(now_s)
        if rate != rate:  # nan: the policy has no estimate
            rate = self.share()
        codec_s = costs.encode_s(tokens, decision) + self.target.costs.expand_s(tokens, bits)
        return codec_s + (self.backlog_bytes + size_bytes) / rate + costs.call_s * costs.calls(decision.mode, size_bytes)

    def share(self) -> float:
        return min(self.limit_bytes_per_s, min((link.bytes_per_s / (len(link.flows) + 1) for link in self.path), default=math.inf))

    def deadline_s(self, tokens: int, arrival_s: float) -> float:
        """When KV must be usable: as abkt.profile.expect.kv_deadline_s, which the real frontend uses."""
        return arrival_s + self.slo.ttft_s - self.target.costs.iteration_s(1, tokens)

    def choose(self, job: Job) -> None:
        """Ask the policy for mode, order and depth, which stand for the whole transfer."""
        request, record, costs = job.request, job.record, self.source.costs
        view = costs.view(request.isl, self.deadline_s(request.isl, request.arrival_s))
        job.decision = self.policy.decide(self.clock.now, view)
        job.expected_bytes, _ = _outcome(job.decision, view)
        self.backlog_bytes += job.expected_bytes
        record.raw_bytes = view.raw_bytes

    def send(self, job: Job) -> None:
        self.queue.append(job)
        if self.idle:
            self.idle = False
            self.wake.after(0.0)

    # -- the transfer ------------------------------------------------------------------------------------------------------------

    def next_job(self) -> Job:
        return self.queue.popleft()

    def start(self, job: Job) -> Flow:
        """Memory is reserved. The flow's first rate asks for the first cut."""
        request, costs = job.request, self.source.costs
        now_s = job.reserved_s = self.clock.now
        self.job = job
        self.cut = 0
        draw = request.request_id if job.decision.mode == "stream" else 0
        self.view = view = costs.view(request.isl, self.deadline_s(request.isl, request.arrival_s), draw)
        self.curve: Curve = view.curve(job.decision.order)
        self.deepest = self.curve.cut_of_bits(job.decision.depth_bits)
        self.record = TransferRecord(
            request_id=request.request_id,
            source=self.source.name,
            destination=self.target.name,
            start_s=now_s,
            mode=job.decision.mode,
            estimate_bytes_per_s=self.policy.estimate_bytes_per_s(now_s),
            raw_bytes=view.raw_bytes,
            pacing="model",
        )
        self.flow = Flow(self.clock, self.path, view.raw_bytes, self.on_rate, self.limit_bytes_per_s)
        self.network.join(self.flow)
        return self.flow

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """The flow has another rate: the policy sees what passed, and may move the cut."""
        if seconds > 0:
            self.policy.observe(self.clock.now, GoodputSample(sent_bytes, seconds))
        if self.job.decision.mode == "raw":
            return float(self.view.raw_bytes)
        self.cut = self.decide()
        return self.curve.bytes[self.cut]

    def extends(self) -> bool:
        """The cut is reached: does the policy want more?"""
        passed_bytes, seconds = self.flow.finish(self.clock.now)
        if seconds > 0:
            self.policy.observe(self.clock.now, GoodputSample(passed_bytes, seconds))
        if self.job.decision.mode == "raw" or self.cut == self.deepest:
            return False
        before, self.cut = self.cut, self.decide()
        if self.cut > before:
            self.flow.aim(self.curve.bytes[self.cut])
        return self.cut > before

    def decide(self) -> int:
        """The policy's cut, no coarser than what has left already and no deeper than was encoded."""
        now_s, view, sent_bytes = self.clock.now, self.view, self.flow.sent_bytes
        sent_cut = bisect_left(self.curve.bytes, sent_bytes * (1 - 1e-12)) if sent_bytes > 0 else 0
        # No encoding is left to do, and the copies of a raw transfer can no longer be chosen.
        still = TransferView(
            view.raw_bytes, view.deadline_s, view.slope, view.uniform, 0.0, view.expand_s, view.raw_s, sent_bytes, sent_cut
        )
        decision = self.policy.decide(now_s, still)
        wanted = decision.cut if decision.mode == "stream" else self.deepest  # raw cannot be had any more: as good as was encoded
        return max(min(wanted, self.deepest), sent_cut)

    def deliver(self) -> None:
        """The last byte is there and acknowledged: the source is free, the decode node has the KV."""
        job, record, flow, curve = self.job, self.record, self.flow, self.curve
        now_s = job.expand_start_s = self.clock.now
        if job.decision.mode == "raw":
            job.wire_bits, distortion = math.inf, 0.0
        else:
            job.wire_bits, distortion = curve.bits[self.cut], curve.distortion[self.cut]
            record.order, record.depth_bits, record.cut = job.decision.order, job.decision.depth_bits, self.cut
            record.slope = _slope(curve, self.cut)
        self.policy.delivered(now_s, distortion)
        record.finish_s = now_s
        record.wire_bytes = round(flow.sent_bytes)
        record.calls = self.source.costs.calls(record.mode, record.wire_bytes)
        record.bits_per_value = 8 * record.wire_bytes / (job.request.isl * self.source.costs.profile.model.values_per_token)
        record.distortion_start = record.distortion_final = distortion
        of = job.record
        of.wire_busy_s = now_s - record.start_s
        of.wire_bytes, of.rate = record.wire_bytes, record.bits_per_value
        of.distortion_start = of.distortion_final = of.distortion_token_weighted = distortion
        of.cost_usd += record.wire_bytes * self.usd_per_byte
        self.backlog_bytes = self.backlog_bytes - job.expected_bytes if self.queue else 0.0
        self.source.memory.release(job.prefill_blocks)
        self.delivered(record)
        self.target.arrive(job)


def send(pair: Pair) -> Generator[Event, None, None]:
    memory = pair.target.memory
    while True:
        if not pair.queue:
            pair.idle = True
            yield pair.wake
        job = pair.next_job()
        if memory.can_reserve(job.decode_blocks):
            memory.reserve(job.decode_blocks)
        else:
            yield memory.waited_for(job.decode_blocks, pair.wake)
        flow = pair.start(job)
        yield flow.end
        while pair.extends():
            yield flow.end
        pair.network.leave(flow)
        calls_s = pair.source.costs.call_s * pair.source.costs.calls(job.decision.mode, flow.sent_bytes)
        if calls_s > 0:
            yield pair.wake.after(calls_s)
        pair.deliver()


def _outcome(decision: Decision, view: TransferView) -> tuple[float, float]:
    """(wire bytes, mean bits per value) of a decision, on this view's curve; bits inf: raw."""
    if decision.mode == "raw":
        return float(view.raw_bytes), math.inf
    curve = view.curve(decision.order)
    return curve.bytes[decision.cut], curve.bits[decision.cut]


def _slope(curve: Curve, cut: int) -> float:
    """Distortion that the cut's last band removed, for each byte of it; nan at the cut that has none."""
    if cut == 0:
        return math.nan
    return (curve.distortion[cut - 1] - curve.distortion[cut]) / (curve.bytes[cut] - curve.bytes[cut - 1])
