"""Refinement: finer bands of the same stream are sent after decoding has begun, while nothing more urgent needs the link.

Once the promised cut has arrived, sending goes on up to the decision's refine_to_cut. These bytes are less urgent than any flow that
decoding waits for, and they never flow while another transfer uses the pair's thread; the refinements of one pair go one after another. The
policy is asked again, with view.started, when the rate changes and when the cut is reached; it may move the cut but not take back sent
bytes. The decode node keeps the codes of the stream in memory, which is counted; without memory for them there is no refinement. When the
last byte has arrived, the node expands the whole stream once more, between two iterations, and later tokens are decoded at the lower
distortion. The source stays pinned until the last byte is acknowledged or the request has ended.

Not modelled: better values swapped in before the cut is reached.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from abkt.policy.view import Curve, Refined
from sim.network.flows import Flow
from sim.records import delivered_transfer
from sim.transfer.transfer import ended_flow

if TYPE_CHECKING:
    from sim.transfer.transfer import SimulatedTransfer

REFINEMENT_LEVEL = 1  # level of a refinement's flow; transfers that decoding waits for have level 0


class Refinement:
    """The refinement of one delivered transfer, made by `start`.

    blocks: memory blocks for codes on the decode node. swapped_at: number of tokens that were decoded before the better values were in use,
    NaN until then. finish_s: time at which the last byte was acknowledged, NaN until then. wire_bytes, wire_calls, distortion_final: values
    at its end.
    """

    __slots__ = (
        "asked_s",
        "blocks",
        "clock",
        "curve",
        "cut",
        "distortion_final",
        "ended",
        "finish_s",
        "flow",
        "job",
        "joined",
        "pair",
        "sent",
        "start_cut",
        "swapped_at",
        "transfer",
        "wire_bytes",
        "wire_calls",
    )

    def __init__(self, transfer: SimulatedTransfer) -> None:
        self.transfer = transfer
        self.pair, self.job, self.clock = transfer.pair, transfer.job, transfer.clock
        self.curve = transfer.curve = _mean_curve(transfer.full, transfer.cuts)
        self.start_cut = self.cut = min(transfer.cuts)
        self.asked_s = math.nan
        self.blocks = 0
        self.swapped_at = math.nan
        self.joined = False  # its flow is in the network
        self.sent = False  # the last byte has left
        self.ended = False
        self.finish_s = math.nan
        self.wire_bytes, self.wire_calls, self.distortion_final = 0, 0, transfer.distortion
        start_bytes = self.curve.bytes[self.start_cut]
        limit = transfer.flow.limit_bytes_per_s
        self.flow = Flow(self.clock, self.pair.path, start_bytes, self.on_rate, limit, REFINEMENT_LEVEL)
        self.flow.sent_bytes = start_bytes

    @classmethod
    def start(cls, transfer: SimulatedTransfer) -> Refinement | None:
        """The refinement of a delivered transfer; None if the policy wants none, or the decode node has no memory for the codes."""
        refinement = cls(transfer)
        if not refinement.extends():
            refinement.flow.on_rate = ended_flow
            return None
        refinement.flow.end.waiter = refinement.reach_cut
        if refinement.pair.refining is None:
            refinement.pair.refining = []
        refinement.pair.refining.append(refinement)
        refinement.resume()
        return refinement

    # -- the flow ----------------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Send, if the pair's thread is free and earlier refinements are done."""
        refining = self.pair.refining
        if not self.joined and not self.pair.sending and refining and refining[0] is self:
            self.joined = True
            self.pair.context.network.join(self.flow)

    def pause(self) -> None:
        if self.joined:
            self.joined = False
            self.flow.settle(self.clock.now)
            self.pair.context.network.leave(self.flow)

    def stop(self) -> None:
        """Stop sending; the pair's next refinement may go on."""
        self.pause()
        refining = self.pair.refining
        if refining and self in refining:
            refining.remove(self)
            if refining:
                refining[0].resume()

    def on_rate(self, sent_bytes: float, seconds: float) -> float:
        """The rate is no sample of goodput for the policy, because a refinement gets only the bandwidth that other flows leave."""
        if self.flow.rate > 0 and self.asked_s != self.clock.now:
            self.cut = self.decide()
        return self.curve.bytes[self.cut]

    def extends(self) -> bool:
        """Whether the policy moves the cut further."""
        before, self.cut = self.cut, self.decide()
        if self.cut > before:
            self.flow.target_bytes = self.curve.bytes[self.cut]
        return self.cut > before

    def reach_cut(self) -> None:
        """Called when the cut is reached or the last byte is acknowledged."""
        flow = self.flow
        if self.sent:
            self.arrive()
            return
        flow.end.waiter = self.reach_cut
        flow.finish(self.clock.now)
        if self.extends():
            flow.aim(flow.target_bytes)
            return
        self.sent = True
        self.stop()
        flow.end.after(self.pair.calls_s(self.calls()) + self.pair.context.delay_s)

    def decide(self) -> int:
        """The cut to refine to: no coarser than what was sent, no deeper than what was encoded, and with memory for its codes."""
        sent_bytes, transfer, sizes = self.flow.sent_bytes, self.transfer, self.curve.bytes
        now_s = self.asked_s = self.clock.now
        sent_cut = max(self.start_cut, bisect_left(sizes, sent_bytes * (1 - 1e-12)))
        decision = self.pair.policy.decide(now_s, transfer.view(sent_bytes, sent_cut, started=True))
        wanted = max(sent_cut, min(decision.refine_to_cut, transfer.deepest))
        return wanted if wanted <= sent_cut or self.reserve_codes(sizes[wanted]) else max(sent_cut, self.cut)

    def reserve_codes(self, code_bytes: float) -> bool:
        """Reserve memory on the decode node, so that it holds `code_bytes` of codes in all. False if there is too little."""
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
        """Bytes sent after decoding began."""
        return self.flow.sent_bytes - self.curve.bytes[self.start_cut]

    def calls(self) -> int:
        return self.pair.calls(self.job.transfer.decision.mode, self.transfer.tokens, self.sent_bytes())

    def arrive(self) -> None:
        """The last byte is acknowledged: release the source, and swap in the better values between two iterations."""
        self.pair.source.prompts.release(self.job)
        self.finish_s = self.clock.now
        target = self.pair.target
        seconds = target.costs.expand_s(self.transfer.tokens, "stream", self.curve.bits[self.cut], self.job.transfer.decision.coder)
        target.gpu.run_between_iterations(seconds, self.swap)
        self.job.cost_usd += seconds * target.gpu.usd_per_s

    def swap(self) -> None:
        if not self.ended:
            self.swapped_at = float(self.pair.target.decoding.decoded_tokens(self.job))

    def end(self) -> None:
        """The request has its last token or is aborted: stop sending, and make the transfer's final record."""
        self.ended = True
        transfer, job, context = self.transfer, self.job, self.pair.context
        if math.isnan(self.finish_s):
            self.stop()
            self.flow.end.cancel()
            self.flow.end.waiter = None
            self.pair.source.prompts.release(job)
        self.pair.target.memory.release(self.blocks)
        if self.sent_bytes() > 0:
            self.wire_bytes, self.wire_calls = round(self.sent_bytes()), self.calls()
            job.transfer.wire_bytes = transfer.wire_bytes + self.wire_bytes
            job.transfer.bits_per_value = transfer.bits_per_value(job.transfer.wire_bytes)
            job.cost_usd += self.wire_bytes * context.usd_per_gb / 1e9
        if not math.isnan(self.swapped_at):
            start, tokens = transfer.distortion, job.request.osl - 1
            self.distortion_final = job.distortion_final = final = self.curve.distortion[self.cut]
            job.distortion_token_weighted = final + (start - final) * self.swapped_at / tokens
        job.transfer.refinement = None
        self.flow.on_rate = ended_flow  # so that the flow does not keep the refinement alive
        self.pair.policy.refined(self.clock.now, Refined(transfer.distortion, job.distortion_token_weighted))
        context.ended(delivered_transfer(transfer, self))


def _mean_curve(full: Curve, cuts: Sequence[int]) -> Curve:
    """The mean curve of layer groups that stand at different cuts and are each refined from their own cut."""
    if len(set(cuts)) == 1:
        return full
    groups = len(cuts)
    points = range(len(full.bytes))
    size, left, bits = (
        tuple(sum(values[max(cut, point)] for cut in cuts) / groups for point in points)
        for values in (full.bytes, full.distortion, full.bits)
    )
    return Curve(size, left, bits)
