"""Transfers between one prefill node and one decode node: in order, one at a time, as one sender thread for each peer does it.

The sender waits until the decode side has reserved memory for the whole request, then its bytes flow at the max-min fair rate,
at most at the 1/beta that the transport itself manages; alpha for each call comes after the last byte. The pair's bitrate policy is
asked before encoding (on the expected curve), then, on the request's own measured curve, when the flow starts, when its rate
changes, and when it has reached the cut: the cut may move while it flows. Raw and exact transfers have no cut and are not asked about
again. Each end's NIC has a price, of which the policy sees the higher: its backlog is what was chosen for it and is not delivered, in
expected bytes. A transfer record starts with its flow; a request's exposed wire time also holds the waits for earlier transfers of the
pair and for memory.

Not modelled: encoding that overlaps sending, what acknowledging takes beside its way, lost frames, retries, refinement behind the start.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace

from simpy.events import Event

from abkt.policy.price import Price
from abkt.policy.view import BitratePolicy, Curve, Decision, Delivered, GoodputSample, TransferView
from abkt.records import SLO, TransferRecord
from sim.clock import Clock, Wake
from sim.job import Job
from sim.network import Flow, Link, Network
from sim.node import Node


class Pair:
    """prices: of the two ends' NICs. delivered(record): called with the record of each transfer that ends. share(): bytes/s a new flow
    would get, if links are fair."""

    def __init__(
        self,
        clock: Clock,
        network: Network,
        source: Node,
        target: Node,
        path: tuple[Link, ...],
        prices: tuple[Price, Price],
        policy: BitratePolicy,
        slo: SLO,
        usd_per_gb: float,
        delivered: Callable[[TransferRecord], None],
        delay_s: float = 0.0,
    ) -> None:
        self.clock = clock
        self.network = network
        self.source = source
        self.target = target
        self.path = path
        self.prices = prices
        self.policy = policy
        self.slo = slo
        self.usd_per_byte = usd_per_gb / 1e9
        self.delivered = delivered
        self.delay_s = delay_s
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
        view = costs.view(tokens, self.deadline_s(tokens, arrival_s), price=self.price())
        decision = self.policy.decide(now_s + self.source.queued_s + costs.prefill_s(tokens), view)
        size_bytes, bits = _outcome(decision, view)
        rate = self.policy.estimate_bytes_per_s(now_s)
        if rate != rate:  # nan: the policy has no estimate
            rate = self.share()
        codec_s = costs.encode_s(tokens, decision) + self.target.costs.expand_s(tokens, decision.mode, bits)
        calls_s = costs.call_s * costs.calls(decision.mode, size_bytes)
        return codec_s + (self.backlog_bytes + size_bytes) / rate + calls_s + 3 * self.delay_s

    def share(self) -> float:
        return min(self.limit_bytes_per_s, min((link.bytes_per_s / (len(link.flows) + 1) for link in self.path), default=math.inf))

    def price(self) -> float:
        """Distortion per byte: the higher of the two ends'."""
        return max(price.per_byte(self.clock.now) for price in self.prices)

    def deadline_s(self, tokens: int, arrival_s: float) -> float:
        """When KV must be usable: as abkt.profile.expect.kv_deadline_s, which the real frontend uses."""
        return arrival_s + self.slo.ttft_s - self.target.costs.iteration_s(1, tokens)

    def choose(self, job: Job) -> None:
        """Ask the policy for mode, order and depth, which stand for the whole transfer."""
        request, record, costs, now_s = job.request, job.record, self.source.costs, self.clock.now
        deadline_s, own_slope = self.deadline_s(request.isl, request.arrival_s), costs.own_slope(request.isl, request.request_id)
        job.view = view = costs.view(request.isl, deadline_s, price=self.price(), own_slope=own_slope)
        job.decision = self.policy.decide(now_s, view)
        job.expected_bytes, _ = _outcome(job.decision, view)
        self.backlog_bytes += job.expected_bytes
        for price in self.prices:
            price.enter(now_s, job.expected_bytes)
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
        now_s = self.clock.now
        if job.reserved_s != job.reserved_s:
            job.reserved_s = now_s
        self.job = job
        self.cut = 0
        draw = request.request_id if job.decision.mode == "stream" else 0
        deadline_s = self.deadline_s(request.isl, request.arrival_s)
        # No encoding is left to do, and the other modes can no longer be had.
        self.view = view = costs.view(request.isl, deadline_s, draw, encode_s=0.0, raw_s=math.inf, exact_bytes=0.0)
        self.curve: Curve = view.curve(job.decision.order)
        self.deepest = self.curve.cut_of_bits(job.decision.depth_bits)
        self.record = TransferRecord(
            request_id=request.request_id,
            source=self.source.name,
            destination=self.target.name,
            start_s=now_s,
            mode=job.decision.mode,
            price=self.price(),
            estimate_bytes_per_s=self.policy.estimate_bytes_per_s(now_s),
            raw_bytes=view.raw_bytes,
            pacing="model",
        )
        self.flow = Flow(self.clock, self.path, job.expected_bytes, self.on_rate, self.limit_bytes_per_s)
        self.network.join(self.flow)
        return self.flow

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """The flow has another rate: the policy sees what passed, and may move the cut."""
        if seconds > 0:
            self.policy.observe(self.clock.now, GoodputSample(sent_bytes, seconds))
        if self.job.decision.mode != "stream":
            return self.job.expected_bytes
        self.cut = self.decide()
        return self.curve.bytes[self.cut]

    def extends(self) -> bool:
        """The cut is reached: does the policy want more?"""
        passed_bytes, seconds = self.flow.finish(self.clock.now)
        if seconds > 0:
            self.policy.observe(self.clock.now, GoodputSample(passed_bytes, seconds))
        if self.job.decision.mode != "stream" or self.cut == self.deepest:
            return False
        before, self.cut = self.cut, self.decide()
        if self.cut > before:
            self.flow.aim(self.curve.bytes[self.cut])
        return self.cut > before

    def decide(self) -> int:
        """The policy's cut, no coarser than what has left already and no deeper than was encoded."""
        sent_bytes = self.flow.sent_bytes
        sent_cut = bisect_left(self.curve.bytes, sent_bytes * (1 - 1e-12)) if sent_bytes > 0 else 0
        view = replace(self.view, sent_bytes=sent_bytes, sent_cut=sent_cut, price=self.price())
        decision = self.policy.decide(self.clock.now, view)
        wanted = decision.cut if decision.mode == "stream" else self.deepest  # whoever still wants raw: as good as was encoded
        return max(min(wanted, self.deepest), sent_cut)

    def deliver(self) -> None:
        """The last byte is there and acknowledged: the source is free, the decode node has the KV."""
        job, record, flow, curve = self.job, self.record, self.flow, self.curve
        now_s = job.expand_start_s = self.clock.now
        if job.decision.mode != "stream":
            job.wire_bits, distortion = 0.0, 0.0
        else:
            job.wire_bits, distortion = curve.bits[self.cut], curve.distortion[self.cut]
            record.order, record.depth_bits, record.cut = job.decision.order, job.decision.depth_bits, self.cut
            record.slope = _slope(curve, self.cut)
        sender_s = job.record.encode_busy_s + now_s - record.start_s
        self.policy.delivered(now_s, Delivered(distortion, job.decision, job.view, sender_s))
        record.finish_s = now_s
        record.wire_bytes = round(flow.sent_bytes)
        record.calls = self.source.costs.calls(job.decision.mode, record.wire_bytes)
        record.bits_per_value = 8 * record.wire_bytes / (job.request.isl * self.source.costs.profile.model.values_per_token)
        record.distortion_start = record.distortion_final = distortion
        of = job.record
        of.wire_busy_s = now_s - record.start_s
        of.wire_bytes, of.rate = record.wire_bytes, record.bits_per_value
        of.distortion_start = of.distortion_final = of.distortion_token_weighted = distortion
        of.cost_usd += record.wire_bytes * self.usd_per_byte
        self.backlog_bytes = self.backlog_bytes - job.expected_bytes if self.queue else 0.0
        for price in self.prices:
            price.leave(now_s, job.expected_bytes)
        self.source.release_prompt(job)
        self.delivered(record)
        self.target.arrive(job)


def send(pair: Pair) -> Generator[Event, None, None]:
    memory = pair.target.memory
    while True:
        if not pair.queue:
            pair.idle = True
            yield pair.wake
        job = pair.next_job()
        if job.reserved_s == job.reserved_s:  # nan: not yet; some are before their prefill begins
            pass
        elif memory.can_reserve(job.decode_blocks):
            memory.reserve(job.decode_blocks)
        else:
            yield memory.waited_for(job.decode_blocks, pair.wake)
        if pair.delay_s > 0:
            yield pair.wake.after(2 * pair.delay_s)  # the offer's way, and the grant's
        flow = pair.start(job)
        yield flow.end
        while pair.extends():
            yield flow.end
        pair.network.leave(flow)
        calls_s = pair.source.costs.call_s * pair.source.costs.calls(job.decision.mode, flow.sent_bytes)
        if calls_s + pair.delay_s > 0:
            yield pair.wake.after(calls_s + pair.delay_s)
        pair.deliver()
        if pair.delay_s > 0:
            yield pair.wake.after(pair.delay_s)  # the acknowledgement's way, before the next offer


def _outcome(decision: Decision, view: TransferView) -> tuple[float, float]:
    """(wire bytes, mean bits per value of a stream) of a decision, on this view's curve."""
    if decision.mode != "stream":
        return (float(view.raw_bytes) if decision.mode == "raw" else view.exact_bytes), 0.0
    curve = view.curve(decision.order)
    return curve.bytes[decision.cut], curve.bits[decision.cut]


def _slope(curve: Curve, cut: int) -> float:
    """Distortion that the cut's last band removed, for each byte of it; nan at the cut that has none."""
    if cut == 0:
        return math.nan
    return (curve.distortion[cut - 1] - curve.distortion[cut]) / (curve.bytes[cut] - curve.bytes[cut - 1])
