"""One transfer of KV: the bytes that flow, the cut that may move while they do, and what the records say of it.

The pair's bitrate policy is asked on the request's own measured curve when the flow starts, when its rate changes, and when it has reached
the cut. Raw and exact transfers have no cut and are not asked about again. A transfer record starts with its flow; a request's exposed wire
time also holds the waits for earlier transfers of the pair and for memory.

KV may come in layer groups (pipeline.py), one after another, each with its own cut. The policy is then shown one curve for what has left
of the groups before and all that is to come: bytes and distortion if every group from this one on went to the same cut.

Not modelled: layers that code better or worse than others of the same prompt.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from abkt.policy.view import Curve, Delivered, GoodputSample, TransferView
from abkt.records import TransferRecord
from sim.clock import Wake
from sim.network.flows import Flow
from sim.node.job import Job
from sim.transfer.refinement import Refinement
from sim.transfer.transport import FRAME_BYTES

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair


class SimulatedTransfer:
    """Memory is reserved for it. `wake` rings at the end of what flows."""

    __slots__ = (
        "begun_bytes",
        "behind",
        "carrier",
        "clock",
        "curve",
        "cut",
        "cuts",
        "deadline_s",
        "deepest",
        "expected",
        "flow",
        "full",
        "groups",
        "job",
        "pair",
        "passed_bytes",
        "random",
        "rate",
        "record",
        "resending",
        "segment_bytes",
        "streamed",
        "tokens",
    )

    def __init__(self, pair: NodePair, job: Job, wake: Wake) -> None:
        self.pair, self.job, self.carrier = pair, job, pair.carrier
        carrier, request, decision, costs = pair.carrier, job.request, job.decision, pair.source.costs
        self.clock = carrier.clock
        now_s = carrier.clock._now
        if job.reserved_s != job.reserved_s:  # nan; else it was before its prefill
            job.reserved_s = now_s
        self.tokens = job.sent_tokens
        self.streamed = decision.mode == "stream"
        self.expected = costs.expected(self.tokens, request.request_id if self.streamed else 0)
        self.deadline_s = pair.deadline_s(request.isl, request.arrival_s)
        curve = self.expected.curve(decision.order)
        self.full = self.curve = curve.scaled(self.expected.entropy_share) if decision.coder == "entropy" else curve
        self.deepest = self.full.cut_of_bits(decision.depth_bits)
        self.groups = 1 if job.pipeline is None else job.pipeline.groups
        self.cut = self.behind = 0
        self.cuts: list[int] = []  # of the groups before
        self.passed_bytes = 0.0  # of the groups before
        self.rate = 0.0  # that the NICs know of
        self.begun_bytes = 0.0  # what had flowed when this group began, frames sent twice included
        self.segment_bytes = 0.0  # what flowed last without a pause
        self.resending = False
        self.random = Random(f"{carrier.transport.seed} {request.request_id}") if carrier.transport.frame_loss > 0 else None
        self.record = TransferRecord(
            request_id=request.request_id,
            source=pair.source.name,
            destination=pair.target.name,
            start_s=now_s,
            mode=decision.mode,
            price=pair.price(),
            estimate_bytes_per_s=pair.policy.estimate_bytes_per_s(now_s),
            raw_bytes=self.expected.raw_bytes,
            pacing="simulated",
        )
        limit = pair.limit_bytes_per_s(job.expected_bytes, pair.calls(decision.mode, self.tokens, job.expected_bytes))
        self.flow: Flow = Flow(
            self.clock, pair.path, job.expected_bytes, self.on_rate, limit, end=wake, stall_s=carrier.transport.timeout_s
        )

    # -- the flow ----------------------------------------------------------------------------------------------------------------

    def begin(self, group: int) -> None:
        """The group is there, and flows from now on. Its first rate asks for its first cut."""
        if group > 0:
            self.curve = _rest(self.full, self.cuts, self.groups)
            self.cut = 0
        self.begun_bytes = self.flow.sent_bytes
        self.resending = False
        self.carrier.network.join(self.flow)

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """The flow has another rate: the policy sees what passed, and may move the cut."""
        self.carry(self.flow.rate)
        if seconds > 0:
            self.pair.policy.observe(self.clock._now, GoodputSample(sent_bytes, seconds))
        if self.resending:
            return self.flow.target_bytes
        if not self.streamed:
            return self.begun_bytes + self.job.expected_bytes / self.groups
        self.cut = self.decide()
        return self.begun_bytes + self.full.bytes[self.cut] / self.groups

    def carry(self, bytes_per_s: float) -> None:
        """Both NICs carry so much of it from now on."""
        now_s, more, self.rate = self.clock._now, bytes_per_s - self.rate, bytes_per_s
        for nic in self.pair.nics:
            nic.carry(now_s, more)

    def extends(self) -> bool:
        """What was to flow has passed: does the policy want more?"""
        self.carry(self.flow.rate)
        passed_bytes, seconds = self.flow.finish(self.clock._now)
        if seconds > 0:
            self.pair.policy.observe(self.clock._now, GoodputSample(passed_bytes, seconds))
        if not self.resending:
            self.segment_bytes = self.flow.sent_bytes - self.begun_bytes
            if self.streamed and self.cut < self.deepest:
                before, self.cut = self.cut, self.decide()
                if self.cut > before:
                    self.flow.aim(self.begun_bytes + self.full.bytes[self.cut] / self.groups)
                    return True
        return False

    def leave(self) -> None:
        """Nothing of it flows, for now."""
        self.carrier.network.leave(self.flow)
        self.carry(0.0)

    def end(self) -> None:
        """The group has passed, with all its frames."""
        self.leave()
        self.cuts.append(self.cut)
        self.passed_bytes += (self.full.bytes[self.cut] if self.streamed else self.job.expected_bytes) / self.groups
        if self.job.pipeline is not None and len(self.cuts) < self.groups:
            self.job.pipeline.expand(self.bits())

    def decide(self) -> int:
        """The policy's cut, no coarser than what has left already and no deeper than was encoded."""
        of_group = self.flow.sent_bytes - self.begun_bytes
        sent_cut = bisect_left(self.full.bytes, of_group * self.groups * (1 - 1e-12)) if of_group > 0 else 0
        decision = self.pair.policy.decide(self.clock._now, self.view(self.passed_bytes + of_group, sent_cut))
        if decision.mode != "stream":  # whoever still wants raw: as good as was encoded
            return self.deepest
        self.behind = decision.refine_to_cut
        return max(min(decision.cut, self.deepest), sent_cut)

    def view(self, sent_bytes: float, sent_cut: int, started: bool = False) -> TransferView:
        """No encoding is left to do, and the other modes can no longer be had."""
        it, job = self.expected, self.job
        slope, uniform = (self.curve, it.uniform) if job.decision.order == "slope" else (it.slope, self.curve)
        return TransferView(
            it.raw_bytes,
            self.deadline_s,
            slope,
            uniform,
            0.0,
            it.expand_s,
            math.inf,
            sent_bytes,
            sent_cut,
            0.0,
            it.lossless_encode_s,
            it.lossless_expand_s,
            hidden_s=job.pipeline.left_s() if job.pipeline is not None else 0.0,
            price=0.0 if started else self.pair.price(),
            started=started,
        )

    # -- what goes wrong ---------------------------------------------------------------------------------------------------------

    def stalled(self) -> bool:
        """Nothing has passed for as long as the transport waits."""
        return self.flow.rate == 0 and self.flow.sent_bytes < self.flow.target_bytes

    def stop(self) -> None:
        """Nothing flows; what has passed is there."""
        self.flow.settle(self.clock._now)
        self.leave()

    def go_on(self, retried: bool = False) -> None:
        self.record.retries += retried
        self.record.resumes += retried
        self.carrier.network.join(self.flow)

    def lost_frames(self) -> int:
        """How many of the frames sent last did not come: drawn at random, the same in every run."""
        if self.random is None:
            return 0
        share, frames = self.carrier.transport.frame_loss, math.ceil(self.segment_bytes / FRAME_BYTES)
        return sum(self.random.random() < share for _ in range(frames))

    def send_again(self, frames: int) -> None:
        """They flow once more. The last frame is shorter than others, and one stands for any."""
        self.resending = True
        self.segment_bytes = min(frames * FRAME_BYTES, self.segment_bytes)
        self.flow.target_bytes = self.flow.sent_bytes + self.segment_bytes
        self.carrier.network.join(self.flow)

    # -- the end -----------------------------------------------------------------------------------------------------------------

    def calls(self) -> int:
        return self.pair.calls(self.job.decision.mode, self.tokens, self.passed_bytes)

    def deliver(self) -> None:
        """The last byte is there and acknowledged: the decode node has the KV, and the source is free, but for what is to follow."""
        pair, job, record, flow, costs = self.pair, self.job, self.record, self.flow, self.pair.source.costs
        now_s = job.expand_start_s = self.clock._now
        distortion = sum([self.full.distortion[cut] for cut in self.cuts]) / self.groups if self.streamed else 0.0
        if self.streamed:
            record.order, record.depth_bits, record.cut = job.decision.order, job.decision.depth_bits, self.cut
            record.slope = _slope(self.full, self.cut)
        job.expand_s = pair.target.costs.expand_s(self.tokens / self.groups, job.decision.mode, self.bits(), job.decision.coder)
        pair.policy.delivered(now_s, Delivered(distortion, job.decision, job.view, job.record.encode_busy_s + now_s - record.start_s))
        record.finish_s = now_s
        record.wire_bytes = round(flow.sent_bytes)
        record.calls = self.calls()
        record.bits_per_value = 8 * record.wire_bytes / (self.tokens * costs.profile.model.values_per_token)
        record.distortion_start = record.distortion_final = distortion
        of = job.record
        of.wire_busy_s = now_s - record.start_s
        of.wire_bytes, of.rate = record.wire_bytes, record.bits_per_value
        of.distortion_start = of.distortion_final = of.distortion_token_weighted = distortion
        of.cost_usd += record.wire_bytes * self.carrier.usd_per_gb / 1e9
        pair.forget(job)
        flow.on_rate = _over  # which knows this transfer: nothing is to keep it
        if self.streamed and self.behind > self.cut and (refinement := Refinement.after(self)):
            job.refinement = refinement
        else:
            pair.source.release_prompt(job)
            self.carrier.ended(record)
        job.pipeline = None
        pair.target.arrive(job)

    def bits(self) -> float:
        """Of the last group, per value."""
        return self.full.bits[self.cut] if self.streamed else 0.0

    def fail(self, reason: str) -> None:
        """The request with it."""
        self.give_up(reason)
        self.carrier.failed(self.job, reason)

    def give_up(self, reason: str) -> None:
        record = self.record
        record.finish_s, record.wire_bytes = self.clock._now, round(self.flow.sent_bytes)
        record.outcome, record.reason = "failed", reason
        self.pair.forget(self.job)
        self.flow.on_rate = _over
        self.carrier.ended(record)


def _over(sent_bytes: float, seconds: float) -> float:
    raise RuntimeError("a flow that has ended got another rate")


def _rest(full: Curve, cuts: Sequence[int], groups: int) -> Curve:
    """The curve of the groups that have passed, each at its cut, and of all the others at the cut in question."""
    share = (groups - len(cuts)) / groups
    size, left, bits = (sum(values[cut] for cut in cuts) / groups for values in (full.bytes, full.distortion, full.bits))
    return Curve(
        tuple([size + share * b for b in full.bytes]),
        tuple([left + share * d for d in full.distortion]),
        tuple([bits + share * b for b in full.bits]),
    )


def _slope(curve: Curve, cut: int) -> float:
    """Distortion that the cut's last band removed, for each byte of it; nan at the cut that has none."""
    if cut == 0:
        return math.nan
    return (curve.distortion[cut - 1] - curve.distortion[cut]) / (curve.bytes[cut] - curve.bytes[cut - 1])
