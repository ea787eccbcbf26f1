"""A node's decoding: continuous batching, in leaps of iterations during which the batch does not change (sim.node.batch).

KV that has arrived waits for the end of the running iteration. It is expanded on the node's GPU while iterations pause, and then the
request joins the batch. The first iteration of a request reads its prompt's KV and gives its second token (the first came from prefill).

Memory is reserved for the whole answer before the KV is sent. With grow_tokens, it is reserved for that many tokens beyond the prompt, and
then for as many again whenever they are used. When no block is left, the newest request is preempted: it gives all its memory back and
computes the KV of its prompt and answer so far again on this node.

Source: Orca (OSDI'22), iteration-level batching; vLLM (SOSP'23), preemption by recomputation.
Not modelled: sampling time, swapping to host memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop

from sim.job import Job
from sim.node.gpu import Gpu
from sim.node.reservations import KvReservations

RESIDENCE_KEEP = 0.9  # weight of the past in the running mean of the time that a request holds memory


class DecodeSide:
    """The requests that decode on a node.

    waiting: jobs whose KV has arrived and is not expanded. leaving: aborted jobs that are still in the batch. local_prompts: prompts under
    way on this node that will decode here. tpot_s: time of one iteration at the last change of the batch, 0 if it is empty. done(job):
    called when a request ends. recompute(job): called for a preempted request, which becomes a prompt again.
    """

    def __init__(
        self,
        gpu: Gpu,
        reservations: KvReservations,
        load_changed: Callable[[], None],
        done: Callable[[Job], None],
        recompute: Callable[[Job], None],
    ) -> None:
        self.gpu, self.reservations = gpu, reservations
        self.clock, self.costs, self.memory, self.engine, self.batch = gpu.clock, gpu.costs, gpu.memory, gpu.engine, gpu.batch
        self.load_changed, self.done, self.recompute = load_changed, done, recompute
        self.waiting: deque[Job] = deque()
        self.leaving: list[Job] = []
        self.local_prompts = 0
        self.unmeasured_s = -math.inf  # end of the last leap outside the profile's range
        self.tpot_s = 0.0
        self.residence_s = 0.0

    # -- what routing and the bitrate policy ask ---------------------------------------------------------------------------------

    def wait_s(self, isl: int) -> float:
        """Expected seconds until memory and a place in the batch are free, if requests keep leaving at the usual pace."""
        blocks = self.memory.blocks
        missing = self.reservations.promised_blocks + self.memory.blocks_for(isl) - blocks
        excess = self.reservations.active + 1 - self.engine.max_batch
        if missing <= 0 >= excess:
            return 0.0
        return self.residence_s * max(missing / blocks, excess / self.engine.max_batch)

    def decoded_tokens(self, job: Job) -> int:
        """Number of tokens that the job has been given here by the end of the last iteration."""
        return self.batch.iterations - job.decoding.first_iteration if job.decoding.order else 0

    def places(self) -> int:
        """Number of requests that may still join the batch."""
        return self.engine.max_batch - len(self.batch.heap) - self.local_prompts

    # -- from arrival to the batch -----------------------------------------------------------------------------------------------

    def arrive(self, job: Job) -> None:
        """Take a job whose promised KV has all arrived."""
        if job.aborted:
            self.reservations.close(job)
            return
        job.transfer.arrived = True
        if self.memory.cache is not None and job.request.hash_ids:
            self.reservations.cache_arrived(job)
        self.waiting.append(job)
        if self.places() > 0:
            self.gpu.attend()

    def admit(self) -> list[Job]:
        """The waiting jobs for which the batch has places, in order of arrival."""
        return [self.waiting.popleft() for _ in range(min(self.places(), len(self.waiting)))]

    def expand(self, jobs: list[Job]) -> float:
        """Expand the jobs' KV one after another; returns the time at which the last one is usable."""
        usable_s = self.clock.now
        for job in jobs:
            expand_s = job.transfer.expand_s * self.batch.slowdown
            job.decoding.expand_busy_s += expand_s
            job.cost_usd += expand_s * self.gpu.usd_per_s
            usable_s += expand_s
            job.decoding.start_s = usable_s
        return usable_s

    def join(self, jobs: list[Job]) -> None:
        batch = self.batch
        for job in jobs:
            if job.aborted:
                self.reservations.close(job)
                continue
            batch.join(job)
            if self.engine.grow_tokens:
                self.watch_blocks(job, self.reservations.held_tokens(job) - job.prompt_tokens)
        self.set_pace()

    def set_pace(self) -> None:
        self.tpot_s = self.batch.measure()
        self.load_changed()

    # -- iterations --------------------------------------------------------------------------------------------------------------

    def advance(self, leap: int, own_s: float, seconds: float) -> None:
        """Account for `leap` iterations that are done. They took `seconds`, of which own_s was for the batch itself."""
        batch, gpu = self.batch, self.gpu
        if batch.fresh:
            first_s = gpu.start_s + (batch.leap_s(1) + gpu.chunk_s)
            for job in batch.fresh:
                if job.decoding.token_s != job.decoding.token_s:  # NaN: this is its first token, not one after a preemption
                    job.decoding.token_s = first_s
            batch.fresh.clear()
        if not self.costs.decode_measured(len(batch.heap), batch.context, batch.context + (leap - 1) * len(batch.heap)):
            self.unmeasured_s = self.clock.now
        batch.advance(leap, seconds, own_s)

    def release_finished(self) -> None:
        finished = self.batch.finished()
        if self.leaving:
            self.remove_aborted()
        if finished:
            self.set_pace()  # routing reads the pace while other requests are expanded before the next iteration
        for job in finished:
            if job.aborted:
                self.reservations.close(job)
                continue
            job.finish_s = self.clock.now
            self.charge(job)
            job.extrapolated |= self.unmeasured_s > job.decoding.start_s
            self.finish(job)

    def finish(self, job: Job) -> None:
        held_s = self.clock.now - job.reservation.reserved_s
        self.residence_s = held_s if self.residence_s == 0 else RESIDENCE_KEEP * self.residence_s + (1 - RESIDENCE_KEEP) * held_s
        self.reservations.close(job)
        self.done(job)

    def charge(self, job: Job) -> None:
        """Charge the job for the iterations that it has been in."""
        job.decoding.busy_s += self.batch.worked_s - job.decoding.worked_s
        job.cost_usd += (self.batch.share_s - job.decoding.share_s) * self.gpu.usd_per_s

    # -- memory that grows -------------------------------------------------------------------------------------------------------

    def watch_blocks(self, job: Job, iterations: int) -> None:
        """Tell the batch that the job's blocks are full after this many iterations, unless the job ends before."""
        if self.reservations.held_tokens(job) < job.prompt_tokens + job.decode_iterations + 1:
            self.batch.fills_after(job, iterations)

    def make_room(self) -> None:
        """Give more blocks to requests that have filled theirs; if none are left, preempt the newest request."""
        batch, memory, reservations = self.batch, self.memory, self.reservations
        while (job := batch.filled()) is not None:
            held = reservations.held_tokens(job)
            target = min(job.prompt_tokens + job.decode_iterations + 1, held + self.engine.grow_tokens)
            more = memory.blocks_for(target) - held // memory.block_tokens
            if memory.can_grow(more):
                heappop(batch.full)
                reservations.grow(job, more)
                self.watch_blocks(job, more * memory.block_tokens)
            else:
                self.preempt(batch.newest())
                self.set_pace()

    def preempt(self, job: Job) -> None:
        """Take the job's memory back. It becomes a prompt of all its tokens so far, whose prefill pass gives the next token."""
        decoded = self.batch.leave(job)
        self.charge(job)
        if job.transfer.refinement is not None:
            job.transfer.refinement.end()
        self.reservations.give_back(job)
        job.pair = None
        job.prompt_tokens, job.decode_iterations = job.prompt_tokens + decoded + 1, job.decode_iterations - decoded - 1
        job.prompt.computed_tokens, job.prompt.has_memory = 0, False
        job.decoding.preemptions += 1
        self.reservations.promise_again(job)
        job.prompt.queued_encode_s, job.prompt.queued_s = 0.0, self.costs.prefill_s(job.prompt_tokens)
        self.recompute(job)

    # -- abort -------------------------------------------------------------------------------------------------------------------

    def abort(self, job: Job) -> None:
        """Abort the job, at any point between the arrival of its KV and the end of its decoding."""
        job.aborted = True
        if job.decoding.order:
            self.leaving.append(job)
            self.gpu.attend()
        elif job in self.waiting:
            self.waiting.remove(job)
            self.reservations.close(job)

    def remove_aborted(self) -> None:
        """Remove aborted jobs from the batch."""
        for job in self.leaving:
            if job.decoding.order:
                self.batch.leave(job)
                self.charge(job)
                self.reservations.close(job)
        self.leaving.clear()
        self.set_pace()
