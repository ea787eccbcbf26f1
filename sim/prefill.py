"""A prefill node: prompts in order of arrival, one at a time; then the KV is encoded on the same GPU and given to the sender.

KV memory for the prompt is reserved before its prefill starts and stays taken until the decode side has acknowledged the transfer,
so a slow link holds back prefill.

Not modelled: batched or chunked prefill, prefix cache, encoding that overlaps prefill layer by layer or the next prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator

from simpy.events import Event

from sim.clock import Clock, Wake
from sim.cost import Costs
from sim.job import Job
from sim.memory import Memory


class PrefillNode:
    """Also what routing sees of it (abkt.policy.view.PrefillLoad). done(job): called for a request that ends here, with its only token."""

    def __init__(self, clock: Clock, name: str, costs: Costs, memory: Memory, usd_per_hour: float, done: Callable[[Job], None]) -> None:
        self.clock = clock
        self.name = name
        self.costs = costs
        self.memory = memory
        self.usd_per_s = usd_per_hour / 3600
        self.done = done
        self.queue: deque[Job] = deque()
        self.wake = Wake(clock)
        self.idle = True
        self.busy_until_s = 0.0
        self.waiting_s = 0.0  # of the queue
        self.encode_token_s = 0.0  # encoding seconds per token of the last prompt: what is expected of the next
        clock.process(prefill(self))

    @property
    def queued_s(self) -> float:
        left_s = self.busy_until_s - self.clock.now
        return self.waiting_s + left_s if left_s > 0 else self.waiting_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return self.costs.prefill_s(isl)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        return 0

    def submit(self, job: Job) -> None:
        isl = job.request.isl
        job.prefill_s = self.costs.prefill_s(isl)
        job.prefill_blocks = self.memory.blocks_for(isl)
        job.promised_s = job.prefill_s + isl * self.encode_token_s
        self.waiting_s += job.promised_s
        self.queue.append(job)
        if self.idle:
            self.idle = False
            self.wake.after(0.0)

    def next_job(self) -> Job:
        job = self.queue.popleft()
        self.waiting_s = self.waiting_s - job.promised_s if self.queue else 0.0
        return job

    def start(self, job: Job) -> float:
        """The prompt is in its one pass; returns when the pass ends."""
        now_s = self.clock.now
        job.prefill_start_s = now_s
        job.record.prefill_busy_s = job.prefill_s
        job.record.extrapolated |= not self.costs.prefill_measured(job.request.isl)
        job.record.cost_usd += job.prefill_s * self.usd_per_s
        self.busy_until_s = now_s + job.promised_s
        return now_s + job.prefill_s

    def encode(self, job: Job) -> float:
        """The first token is known; the bitrate policy says what becomes of the KV. Returns when it is encoded."""
        now_s = self.clock.now
        job.encode_start_s = job.record.prefill_token_s = now_s
        isl, record = job.request.isl, job.record
        if job.request.osl == 1:
            self.busy_until_s = now_s
            return now_s
        job.pair.choose(job)
        record.encode_busy_s = self.costs.encode_s(isl, job.decision)
        record.extrapolated |= not self.costs.codec_measured(isl)
        record.cost_usd += record.encode_busy_s * self.usd_per_s
        self.encode_token_s = record.encode_busy_s / isl
        self.busy_until_s = now_s + record.encode_busy_s
        return self.busy_until_s

    def hand_over(self, job: Job) -> None:
        job.wire_start_s = self.clock.now
        if job.request.osl > 1:
            job.pair.send(job)
            return
        job.expand_start_s = job.decode_start_s = job.record.decode_token_s = job.record.finish_s = self.clock.now
        self.memory.release(job.prefill_blocks)
        self.done(job)


def prefill(node: PrefillNode) -> Generator[Event, None, None]:
    while True:
        if not node.queue:
            node.idle = True
            yield node.wake
        job = node.next_job()
        if node.memory.can_reserve(job.prefill_blocks):
            node.memory.reserve(job.prefill_blocks)
        else:
            yield node.memory.waited_for(job.prefill_blocks, node.wake)
        yield node.wake.at(node.start(job))
        encoded_s = node.encode(job)
        if encoded_s > node.clock.now:
            yield node.wake.at(encoded_s)
        node.hand_over(job)
