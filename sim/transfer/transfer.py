"""One transfer of KV: the bytes that flow, and the cut that may move while they flow.

The pair's bitrate policy is asked on the request's own measured curve when the flow starts, when its rate changes, and when it has reached
the cut. Raw and lossless transfers have no cut, so the policy is not asked again. A transfer's record starts with its flow; a request's
exposed wire time also includes the waits for earlier transfers of the pair and for memory.

KV may be sent in layer groups (sim.transfer.pipeline), one after another, each with its own cut. The policy is then shown one curve that
combines the earlier groups, at the cuts that they reached, with all later ones: its bytes and distortion are those of the whole transfer if
every group from this one on is sent up to the same cut.

Not modelled: layers that compress better or worse than others of the same prompt.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from abkt.policy.view import Curve, Delivered, GoodputSample, TransferView
from sim.job import Job
from sim.network.flows import Flow
from sim.records import failed_transfer
from sim.timers import Wake
from sim.transfer.transport import FRAME_BYTES

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair


class SimulatedTransfer:
    """A transfer whose memory on the decode node is reserved. `wake` fires at the end of what flows.

    full: the request's own curve; curve: the curve that the policy is shown. cut: cut of the group that flows; cuts: cuts of the earlier
    groups. finish_s, wire_bytes, calls_made, distortion: values at delivery.
    """

    __slots__ = (
        "begun_bytes",
        "behind",
        "calls_made",
        "clock",
        "context",
        "curve",
        "cut",
        "cuts",
        "deadline_s",
        "deepest",
        "distortion",
        "estimate_bytes_per_s",
        "expected",
        "finish_s",
        "flow",
        "full",
        "groups",
        "job",
        "pair",
        "passed_bytes",
        "price",
        "random",
        "rate",
        "resending",
        "retries",
        "segment_bytes",
        "start_s",
        "streamed",
        "tokens",
        "wire_bytes",
    )

    def __init__(self, pair: NodePair, job: Job, wake: Wake) -> None:
        self.pair, self.job, self.context = pair, job, pair.context
        context, request, decision, costs = pair.context, job.request, job.transfer.decision, pair.source.costs
        self.clock = context.clock
        self.start_s = now_s = context.clock.now
        if job.reservation.reserved_s != job.reservation.reserved_s:  # NaN: memory was not reserved before prefill
            job.reservation.reserved_s = now_s
        self.tokens = job.sent_tokens
        self.streamed = decision.mode == "stream"
        self.expected = costs.expected(self.tokens, request.request_id if self.streamed else 0)
        self.deadline_s = pair.deadline_s(request.isl, request.arrival_s)
        curve = self.expected.curve(decision.order, decision.coder)
        self.full = self.curve = curve.scaled(self.expected.entropy_share) if decision.coder == "entropy" else curve
        self.deepest = self.full.cut_of_bits(decision.depth_bits)
        self.groups = 1 if job.transfer.pipeline is None else job.transfer.pipeline.groups
        self.cut = self.behind = 0
        self.cuts: list[int] = []
        self.passed_bytes = 0.0  # bytes of the earlier groups
        self.rate = 0.0  # rate that the NICs were last told
        self.begun_bytes = 0.0  # bytes that had flowed when this group began, including frames sent twice
        self.segment_bytes = 0.0  # bytes that have flowed since the last pause
        self.resending = False
        self.retries = 0
        self.random = Random(f"{context.transport.seed} {request.request_id}") if context.transport.frame_loss > 0 else None
        self.price = pair.price()
        self.estimate_bytes_per_s = pair.policy.estimate_bytes_per_s(now_s)
        self.finish_s, self.wire_bytes, self.calls_made, self.distortion = math.nan, 0, 0, 0.0
        expected_bytes = job.transfer.expected_bytes
        limit = pair.limit_bytes_per_s(expected_bytes, pair.calls(decision.mode, self.tokens, expected_bytes))
        self.flow: Flow = Flow(self.clock, pair.path, expected_bytes, self.on_rate, limit, end=wake, stall_s=context.transport.timeout_s)

    # -- the flow ----------------------------------------------------------------------------------------------------------------

    def begin(self, group: int) -> None:
        """The group is encoded and flows from now on. Its first rate asks for its first cut."""
        if group > 0:
            self.curve = _remaining(self.full, self.cuts, self.groups)
            self.cut = 0
        self.begun_bytes = self.flow.sent_bytes
        self.resending = False
        self.context.network.join(self.flow)

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """The flow has another rate: tell the policy which bytes have passed; it may move the cut."""
        self.tell_nics(self.flow.rate)
        if seconds > 0:
            self.pair.policy.observe(self.clock.now, GoodputSample(sent_bytes, seconds))
        if self.resending:
            return self.flow.target_bytes
        if not self.streamed:
            return self.begun_bytes + self.job.transfer.expected_bytes / self.groups
        self.cut = self.decide()
        return self.begun_bytes + self.full.bytes[self.cut] / self.groups

    def tell_nics(self, bytes_per_s: float) -> None:
        """The transfer flows at this rate from now on."""
        now_s, more, self.rate = self.clock.now, bytes_per_s - self.rate, bytes_per_s
        self.pair.source_nic.add_load(now_s, more)
        self.pair.target_nic.add_load(now_s, more)

    def extends(self) -> bool:
        """Whether the policy wants to send more, now that the target has passed."""
        self.tell_nics(self.flow.rate)
        passed_bytes, seconds = self.flow.finish(self.clock.now)
        if seconds > 0:
            self.pair.policy.observe(self.clock.now, GoodputSample(passed_bytes, seconds))
        if not self.resending:
            self.segment_bytes = self.flow.sent_bytes - self.begun_bytes
            if self.streamed and self.cut < self.deepest:
                before, self.cut = self.cut, self.decide()
                if self.cut > before:
                    self.flow.aim(self.begun_bytes + self.full.bytes[self.cut] / self.groups)
                    return True
        return False

    def leave(self) -> None:
        """Stop the flow for now."""
        self.context.network.leave(self.flow)
        self.tell_nics(0.0)

    def end(self) -> None:
        """End a group: all its frames have passed."""
        self.leave()
        self.cuts.append(self.cut)
        self.passed_bytes += (self.full.bytes[self.cut] if self.streamed else self.job.transfer.expected_bytes) / self.groups
        if self.job.transfer.pipeline is not None and len(self.cuts) < self.groups:
            self.job.transfer.pipeline.expand(self.bits())

    def decide(self) -> int:
        """The policy's cut, but no coarser than what was already sent and no deeper than what was encoded."""
        of_group = self.flow.sent_bytes - self.begun_bytes
        sent_cut = bisect_left(self.full.bytes, of_group * self.groups * (1 - 1e-12)) if of_group > 0 else 0
        decision = self.pair.policy.decide(self.clock.now, self.view(self.passed_bytes + of_group, sent_cut))
        if decision.mode != "stream":  # the policy now wants raw, which is no longer possible: send all that was encoded
            return self.deepest
        self.behind = decision.refine_to_cut
        return max(min(decision.cut, self.deepest), sent_cut)

    def view(self, sent_bytes: float, sent_cut: int, started: bool = False) -> TransferView:
        """The policy's view of the transfer after encoding: no encoding time is left, and other modes are not available."""
        expected, stage = self.expected, self.job.transfer
        slope, uniform = (self.curve, expected.uniform) if stage.decision.order == "slope" else (expected.slope, self.curve)
        return TransferView(
            expected.raw_bytes,
            self.deadline_s,
            slope,
            uniform,
            0.0,
            expected.klt_expand_s if stage.decision.coder == "klt" else expected.expand_s,
            math.inf,
            sent_bytes,
            sent_cut,
            0.0,
            expected.lossless_encode_s,
            expected.lossless_expand_s,
            hidden_s=stage.pipeline.left_s() if stage.pipeline is not None else 0.0,
            price=0.0 if started else self.pair.price(),
            started=started,
        )

    # -- faults ------------------------------------------------------------------------------------------------------------------

    def stalled(self) -> bool:
        """Whether no byte has passed for the transport's timeout."""
        return self.flow.rate == 0 and self.flow.sent_bytes < self.flow.target_bytes

    def stop(self) -> None:
        """Pause the flow; bytes that have passed stay sent."""
        self.flow.settle(self.clock.now)
        self.leave()

    def retry(self) -> None:
        """Offer the transfer again; it continues where it stopped."""
        self.retries += 1
        self.context.network.join(self.flow)

    def lost_frames(self) -> int:
        """Number of lost frames among those sent last. It is random, but the same in every run."""
        if self.random is None:
            return 0
        share, frames = self.context.transport.frame_loss, math.ceil(self.segment_bytes / FRAME_BYTES)
        return sum(self.random.random() < share for _ in range(frames))

    def send_again(self, frames: int) -> None:
        """Send the lost frames again. Which frames were lost is not modelled, so the shorter last frame counts like any other."""
        self.resending = True
        self.segment_bytes = min(frames * FRAME_BYTES, self.segment_bytes)
        self.flow.target_bytes = self.flow.sent_bytes + self.segment_bytes
        self.context.network.join(self.flow)

    # -- the end -----------------------------------------------------------------------------------------------------------------

    def calls(self) -> int:
        return self.pair.calls(self.job.transfer.decision.mode, self.tokens, self.passed_bytes)

    def bits(self) -> float:
        """Bits per value of the last group."""
        return self.full.bits[self.cut] if self.streamed else 0.0

    def bits_per_value(self, wire_bytes: int) -> float:
        """Wire bits per KV value of the tokens that were sent."""
        return 8 * wire_bytes / (self.tokens * self.pair.source.costs.profile.model.values_per_token)

    def may_refine(self) -> bool:
        """Whether the policy wanted to send more once decoding has begun."""
        return self.streamed and self.behind > self.cut

    def deliver(self) -> None:
        """The last promised byte has arrived and is acknowledged."""
        pair, job, flow, stage = self.pair, self.job, self.flow, self.job.transfer
        self.finish_s = now_s = stage.arrived_s = self.clock.now
        self.distortion = sum([self.full.distortion[cut] for cut in self.cuts]) / self.groups if self.streamed else 0.0
        self.wire_bytes, self.calls_made = round(flow.sent_bytes), self.calls()
        decision = stage.decision
        stage.expand_s = pair.target.costs.expand_s(self.tokens / self.groups, decision.mode, self.bits(), decision.coder)
        stage.busy_s = now_s - self.start_s
        pair.policy.delivered(now_s, Delivered(self.distortion, decision, stage.view, job.prompt.encode_busy_s + now_s - self.start_s))
        stage.wire_bytes, stage.bits_per_value = self.wire_bytes, self.bits_per_value(self.wire_bytes)
        job.set_distortion(self.distortion)
        job.cost_usd += self.wire_bytes * self.context.usd_per_gb / 1e9
        pair.leave_backlog(job)
        flow.on_rate = ended_flow  # so that the flow does not keep the transfer alive

    def fail(self, reason: str) -> None:
        """Fail the transfer and its request."""
        self.give_up(reason)
        self.context.failed(self.job, reason)

    def give_up(self, reason: str) -> None:
        self.pair.leave_backlog(self.job)
        self.flow.on_rate = ended_flow
        self.context.ended(failed_transfer(self, self.clock.now, reason))


def ended_flow(sent_bytes: float, seconds: float) -> float:
    raise RuntimeError("a flow that has ended got another rate")


def _remaining(full: Curve, cuts: Sequence[int], groups: int) -> Curve:
    """The curve of a whole transfer: the groups that have passed stay at their cuts, and all others are sent up to the curve's cut."""
    share = (groups - len(cuts)) / groups
    size, left, bits = (sum(values[cut] for cut in cuts) / groups for values in (full.bytes, full.distortion, full.bits))
    return Curve(
        tuple([size + share * b for b in full.bytes]),
        tuple([left + share * d for d in full.distortion]),
        tuple([bits + share * b for b in full.bits]),
    )
