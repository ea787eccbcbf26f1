"""What follows a transfer behind the start of decoding: finer bands of the same stream, sent when nothing more urgent wants the link.

Once the promised cut is there, the bytes go on to the cut `behind`, less urgent than any flow that decoding waits for, and never while
another transfer has the pair's thread; those of one pair go one after another. The policy is asked again when the rate changes and when the
cut is reached, with view.started; it may move the cut, not take back what has left. The decode node keeps the codes of the stream, which is
memory that is counted, or there is no refinement for want of it. When the last byte is there, the node expands the whole stream once more,
between two iterations, and the tokens from then on are decoded at the lower distortion. Until the last byte is acknowledged, or the request
has ended, the source stays pinned.

Not modelled: better values swapped in before the cut is reached.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simpy.events import Event

from abkt.policy.view import Curve, Refined
from sim.network.flows import Flow

if TYPE_CHECKING:
    from sim.transfer.transfer import SimulatedTransfer

BEHIND = 1  # level of the flow; transfers that decoding waits for have 0


class Refinement:
    """Use `after`. swapped_at: tokens that were decoded before the better values; nan before they are in."""

    __slots__ = (
        "asked_s",
        "blocks",
        "clock",
        "curve",
        "cut",
        "flow",
        "job",
        "joined",
        "over",
        "pair",
        "sent",
        "start_cut",
        "swapped_at",
        "transfer",
    )

    def __init__(self, transfer: SimulatedTransfer) -> None:
        self.transfer = transfer
        self.pair, self.job, self.clock = transfer.pair, transfer.job, transfer.clock
        self.curve = transfer.curve = _with_all(transfer.full, transfer.cuts)
        self.start_cut = self.cut = min(transfer.cuts)
        self.asked_s = math.nan
        self.blocks = 0  # of codes that the decode node keeps
        self.swapped_at = math.nan
        self.joined = False  # its flow is in the network
        self.sent = False  # the last byte has left
        self.over = False
        start_bytes = self.curve.bytes[self.start_cut]
        limit = transfer.flow.limit_bytes_per_s
        self.flow = Flow(self.clock, self.pair.path, start_bytes, self.on_rate, limit, BEHIND)
        self.flow.sent_bytes = start_bytes

    @classmethod
    def after(cls, transfer: SimulatedTransfer) -> Refinement | None:
        """Of a transfer that was delivered; None where the policy wants none after all, or the decode node has no memory for the codes."""
        refinement = cls(transfer)
        if not refinement.extends():
            refinement.flow.on_rate = transfer.flow.on_rate
            return None
        refinement.flow.end.callbacks.append(refinement.reached)
        refinement.pair.refining.append(refinement)
        refinement.go_on()
        return refinement

    # -- the flow ----------------------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """If the pair's thread is free, and those before it are done."""
        if not self.joined and not self.pair.sending and self.pair.refining[0] is self:
            self.joined = True
            self.pair.carrier.network.join(self.flow)

    def pause(self) -> None:
        if self.joined:
            self.joined = False
            self.flow.settle(self.clock._now)
            self.pair.carrier.network.leave(self.flow)

    def give_way(self) -> None:
        """Nothing of it is to come: the next one may go on."""
        self.pause()
        refining = self.pair.refining
        if self in refining:
            refining.remove(self)
            if refining:
                refining[0].go_on()

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """Not a sample of goodput: what passes is what others leave."""
        if self.flow.rate > 0 and self.asked_s != self.clock._now:
            self.cut = self.decide()
        return self.curve.bytes[self.cut]

    def extends(self) -> bool:
        before, self.cut = self.cut, self.decide()
        if self.cut > before:
            self.flow.target_bytes = self.curve.bytes[self.cut]
        return self.cut > before

    def reached(self, _: Event) -> None:
        """The cut is reached, or the last byte acknowledged."""
        flow = self.flow
        if self.sent:
            self.arrive()
            return
        flow.end.callbacks.append(self.reached)
        flow.finish(self.clock._now)
        if self.extends():
            flow.aim(flow.target_bytes)
            return
        self.sent = True
        self.give_way()
        flow.end.after(self.pair.calls_s(self.calls()) + self.pair.carrier.delay_s)

    def decide(self) -> int:
        """How far behind the start: no coarser than what has left, no deeper than was encoded, no more than the memory for its codes."""
        sent_bytes, transfer, sizes = self.flow.sent_bytes, self.transfer, self.curve.bytes
        now_s = self.asked_s = self.clock._now
        sent_cut = max(self.start_cut, bisect_left(sizes, sent_bytes * (1 - 1e-12)))
        decision = self.pair.policy.decide(now_s, transfer.view(sent_bytes, sent_cut, started=True))
        wanted = max(sent_cut, min(decision.refine_to_cut, transfer.deepest))
        return wanted if wanted <= sent_cut or self.keep(sizes[wanted]) else max(sent_cut, self.cut)

    def keep(self, code_bytes: float) -> bool:
        """Memory on the decode node for so many bytes of codes in all. False if there is none."""
        memory, costs = self.pair.target.memory, self.pair.target.costs
        more = memory.blocks_for(math.ceil(code_bytes / costs.kv_bytes_per_token)) - self.blocks
        if more > 0:
            if not memory.can_reserve(more):
                return False
            memory.reserve(more)
            self.blocks += more
        return True

    # -- the end -----------------------------------------------------------------------------------------------------------------

    def sent_bytes(self) -> float:
        return self.flow.sent_bytes - self.curve.bytes[self.start_cut]

    def calls(self) -> int:
        return self.pair.calls(self.job.decision.mode, self.transfer.tokens, self.sent_bytes())

    def arrive(self) -> None:
        """The last byte is there and acknowledged: the source is free, and the better values come in between two iterations."""
        self.pair.source.release_prompt(self.job)
        self.transfer.record.refine_finish_s = self.clock._now
        target = self.pair.target
        seconds = target.costs.expand_s(self.transfer.tokens, "stream", self.curve.bits[self.cut], self.job.decision.coder)
        target.interject(seconds, self.swap)
        self.job.record.cost_usd += seconds * target.usd_per_s

    def swap(self) -> None:
        if not self.over:
            self.swapped_at = self.pair.target.decoded(self.job)

    def end(self) -> None:
        """The request has its last token, or is given up: nothing follows any more."""
        self.over = True
        record, of, transfer, job = self.transfer.record, self.job.record, self.transfer, self.job
        if math.isnan(record.refine_finish_s):
            self.give_way()
            self.flow.end.cancel()
            self.flow.end.callbacks.clear()
            self.pair.source.release_prompt(job)
        self.pair.target.memory.release(self.blocks)
        sent_bytes = self.sent_bytes()
        if sent_bytes > 0:
            record.refine_bytes = round(sent_bytes)
            record.wire_bytes += record.refine_bytes
            record.calls += self.calls()
            record.bits_per_value = 8 * record.wire_bytes / (transfer.tokens * self.pair.source.costs.profile.model.values_per_token)
            of.wire_bytes, of.rate = record.wire_bytes, record.bits_per_value
            of.cost_usd += record.refine_bytes * self.pair.carrier.usd_per_gb / 1e9
        if not math.isnan(self.swapped_at):
            start, final, tokens = record.distortion_start, self.curve.distortion[self.cut], job.request.osl - 1
            record.distortion_final = of.distortion_final = final
            of.distortion_token_weighted = final + (start - final) * self.swapped_at / tokens
        job.refinement = None
        self.flow.on_rate = transfer.flow.on_rate  # so that nothing refers to itself
        self.pair.policy.refined(self.clock._now, Refined(record.distortion_start, of.distortion_token_weighted))
        self.pair.carrier.ended(record)


def _with_all(full: Curve, cuts: Sequence[int]) -> Curve:
    """The curve of groups of layers that have come to different cuts, each going on from its own."""
    if len(set(cuts)) == 1:
        return full
    groups = len(cuts)
    points = range(len(full.bytes))
    size, left, bits = (
        tuple(sum(values[max(cut, point)] for cut in cuts) / groups for point in points)
        for values in (full.bytes, full.distortion, full.bits)
    )
    return Curve(size, left, bits)
