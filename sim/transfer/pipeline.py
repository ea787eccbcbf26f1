"""KV of one prompt in G groups of layers: compute, encode, send, expand, each group after the other, all stages at work at once.

While the prompt's pass runs (its last one, if it goes in chunks), a group whose layers are done is encoded on the same GPU, which delays
the pass by as long, and then sent. No more than `staging` groups may be encoded and not sent meanwhile; what finds no place is encoded at a
later group's end, or at the end of the pass, as everything is with one group. The decode node expands a group between two of its iterations
when it has arrived, and the request joins the batch when the last one is expanded. Every group costs the codec its constant part again.

Not modelled: groups of prompts that share a pass (they are sent whole), chunks that are sent before the last one is computed, layers that
take longer than others, the way of the groups before the last between the nodes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from simpy.events import Event

from sim.clock import Wake
from sim.node.job import Job

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair


class Pipeline:
    """The pass over the prompt begins now and takes pass_s. Asks the policy what becomes of the KV, which the pass hides for so long."""

    def __init__(self, pair: NodePair, job: Job, pass_s: float) -> None:
        transport = pair.carrier.transport
        self.pair, self.job, self.node, self.clock = pair, job, pair.source, pair.carrier.clock
        self.groups, self.staging = transport.layer_groups, transport.staging
        self.pass_s = pass_s
        self.ends_s = self.clock._now + pass_s
        self.encoded = 0
        self.sent = 0
        self.waiting: Wake | None = None  # the sender's
        pair.choose(job, hidden_s=pass_s)
        job.pipeline = self
        self.clock.process(flow_through(self))

    def left_s(self) -> float:
        return max(0.0, self.ends_s - self.clock._now)

    def encode_s(self) -> float:
        """Of one group."""
        return self.node.costs.encode_s(self.job.sent_tokens / self.groups, self.job.decision) * self.node.batch.slow

    def stretch(self, seconds: float) -> None:
        self.ends_s += seconds
        self.node.stretch(seconds)
        self.job.record.encode_busy_s += seconds
        self.job.record.cost_usd += seconds * self.node.usd_per_s

    def left_to_encode_s(self) -> float:
        """At the end of the pass."""
        return (self.groups - self.encoded) * self.encode_s()

    def give(self) -> None:
        """One more group is encoded."""
        self.encoded += 1
        if self.job.gone:
            return
        if self.encoded == 1:
            self.pair.send(self.job)
        elif self.waiting is not None:
            self.waiting.after(0.0)
            self.waiting = None

    def finish(self) -> None:
        """All that was left is encoded."""
        while self.encoded < self.groups:
            self.give()

    def gives(self, group: int, wake: Wake) -> bool:
        """The sender has sent those before `group`. False if this one is not encoded yet: then `wake` rings when it is."""
        self.sent = group
        if self.encoded <= group:
            self.waiting = wake
            return False
        return True

    def expand(self, bits: float) -> None:
        """A group that is not the last has arrived."""
        record, target = self.job.record, self.pair.target
        decision = self.job.decision
        seconds = target.costs.expand_s(self.job.sent_tokens / self.groups, decision.mode, bits, decision.coder)
        record.expand_busy_s += seconds
        record.cost_usd += seconds * target.usd_per_s
        target.interject(seconds, _nothing)  # which counts the node's slowness itself


def flow_through(it: Pipeline) -> Generator[Event, None, None]:
    wake, compute_s, encode_s = Wake(it.clock), it.pass_s / it.groups, it.encode_s()
    for computed in range(1, it.groups):
        yield wake.after(compute_s)
        while it.encoded < computed and it.encoded - it.sent < it.staging and not it.job.gone:
            it.stretch(encode_s)
            yield wake.after(encode_s)
            it.give()


def _nothing() -> None:
    pass
