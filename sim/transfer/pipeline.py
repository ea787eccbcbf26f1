"""The KV of one prompt in G groups of layers. Each group is computed, encoded, sent and expanded; different groups are in different stages.

While the prompt's pass runs (the last pass, if the prompt is computed in chunks), a group whose layers are done is encoded on the same GPU,
which delays the pass by that time, and then sent. At most `staging` groups may be encoded and not yet sent. A group beyond that limit is
encoded when a later group ends, or at the end of the pass, as all KV is if there is one group. The decode node expands an arrived group
between two of its iterations, and the request joins the batch when the last group is expanded. The codec's constant cost recurs for every
group.

Not modelled: groups of prompts that share a pass (such prompts are sent whole); chunks that are sent before the last one is computed;
layers that take longer than others; the propagation delay of all groups but the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.job import Job
from sim.timers import Process, Wake

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair


class Pipeline:
    """The layer groups of one prompt whose pass begins now and takes pass_s.

    The constructor asks the policy how to encode the KV; the policy is told that the pass hides pass_s seconds of the transfer.
    """

    def __init__(self, pair: NodePair, job: Job, pass_s: float) -> None:
        transport = pair.context.transport
        self.pair, self.job, self.gpu, self.clock = pair, job, pair.source.gpu, pair.context.clock
        self.groups, self.staging = transport.layer_groups, transport.staging
        self.pass_s = pass_s
        self.ends_s = self.clock.now + pass_s
        self.encoded = 0
        self.sent = 0
        self.sender_wake: Wake | None = None  # timer of the sender while it waits for the next group
        pair.decide(job, hidden_s=pass_s)
        job.transfer.pipeline = self
        self.clock.process(encode_during_pass(self))

    def left_s(self) -> float:
        """Seconds until the pass ends."""
        return max(0.0, self.ends_s - self.clock.now)

    def encode_s(self) -> float:
        """Seconds to encode one group."""
        return self.gpu.costs.encode_s(self.job.sent_tokens / self.groups, self.job.transfer.decision) * self.gpu.batch.slowdown

    def begin_encoding(self, seconds: float) -> None:
        """The GPU encodes a group within the pass, which ends later by this time."""
        self.ends_s += seconds
        self.gpu.lengthen_iteration(seconds)
        self.job.prompt.encode_busy_s += seconds
        self.job.cost_usd += seconds * self.gpu.usd_per_s

    def left_to_encode_s(self) -> float:
        """Seconds of encoding that are left at the end of the pass."""
        return (self.groups - self.encoded) * self.encode_s()

    def add_encoded(self) -> None:
        """Count one more encoded group, and wake the sender."""
        self.encoded += 1
        if self.job.aborted:
            return
        if self.encoded == 1:
            self.pair.enqueue(self.job)
        elif self.sender_wake is not None:
            self.sender_wake.after(0.0)
            self.sender_wake = None

    def finish(self) -> None:
        """Count all groups as encoded."""
        while self.encoded < self.groups:
            self.add_encoded()

    def has_group(self, group: int, wake: Wake) -> bool:
        """Called when the sender has sent all groups before `group`. False if `group` is not encoded yet; `wake` then fires when it is."""
        self.sent = group
        if self.encoded <= group:
            self.sender_wake = wake
            return False
        return True

    def expand(self, bits: float) -> None:
        """Expand a group that has arrived and is not the last."""
        job, target = self.job, self.pair.target
        decision = job.transfer.decision
        seconds = target.costs.expand_s(job.sent_tokens / self.groups, decision.mode, bits, decision.coder)
        job.decoding.expand_busy_s += seconds
        job.cost_usd += seconds * target.gpu.usd_per_s
        target.gpu.run_between_iterations(seconds, _nothing)  # this call applies the node's slowdown


def encode_during_pass(pipeline: Pipeline) -> Process:
    wake, compute_s, encode_s = Wake(pipeline.clock), pipeline.pass_s / pipeline.groups, pipeline.encode_s()
    for computed in range(1, pipeline.groups):
        yield wake.after(compute_s)
        while pipeline.encoded < computed and pipeline.encoded - pipeline.sent < pipeline.staging and not pipeline.job.aborted:
            pipeline.begin_encoding(encode_s)
            yield wake.after(encode_s)
            pipeline.add_encoded()


def _nothing() -> None:
    pass
