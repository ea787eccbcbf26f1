"""A node's decoding: continuous batching, in leaps over all iterations between which the batch does not change (sim.node.batch).

KV that has arrived waits for the end of the running iteration, is expanded on the node's own time (iterations pause), and joins the
batch. The first iteration of a request reads its prompt's KV and gives its second token (the first one came from prefill).

Memory is reserved for the whole answer before its KV is sent; or, with grow_tokens, for so many tokens beyond the prompt, and then bit by
bit. Where there is none left, the newest request gives all of its memory back and computes its KV again here, prompt and answer so far.

Source: Orca (OSDI'22), iteration-level batching; vLLM (SOSP'23), preemption by recomputation.
Not modelled: sampling time, swapping to host memory.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop
from typing import TYPE_CHECKING, Any

from sim.node.holding import Holding
from sim.node.job import Job

if TYPE_CHECKING:
    from sim.node.prefill import PromptSide

RESIDENCE_KEEP = 0.9  # weight of the past in the mean time that a request holds memory


class DecodeSide(Holding):
    """Also what routing sees of it (abkt.policy.routing.base.DecodeLoad).

    tpot_s: one iteration's time at the last change of the batch, 0 if it is empty. locals: of its own prompts, those under way that will
    decode here.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.waiting: deque[Job] = deque()  # arrived, not expanded
        self.leaving: list[Job] = []  # of the batch, given up
        self.locals = 0
        self.unmeasured_s = -math.inf  # end of the last leap outside the profile's range
        self.tpot_s = 0.0
        self.residence_s = 0.0

    # -- what routing and the bitrate policy ask ---------------------------------------------------------------------------------

    def wait_s(self, isl: int) -> float:
        """Until memory and a place in the batch are free, if what is taken keeps turning over at its usual pace."""
        missing = self.promised_blocks + self.memory.blocks_for(isl) - self.memory.blocks
        crowd = self.active + 1 - self.engine.max_batch
        if missing <= 0 >= crowd:
            return 0.0
        return self.residence_s * max(missing / self.memory.blocks, crowd / self.engine.max_batch)

    # -- memory ------------------------------------------------------------------------------------------------------------------

    def make_room(self) -> None:
        """Who has filled its blocks gets more; if there are none, the newest request gives way."""
        batch, memory = self.batch, self.memory
        while (job := batch.filled()) is not None:
            covered = job.decode_blocks + self.pinned_blocks(job)
            target = min(job.tokens + job.left + 1, covered * memory.block_tokens + self.engine.grow_tokens)
            more = memory.blocks_for(target) - covered
            if memory.can_grow(more):
                heappop(batch.full)
                memory.grow(more)
                job.decode_blocks += more
                job.due_blocks += more
                self.due_blocks += more
                self.account(0, more)
                self.watch(job, more * memory.block_tokens)
            else:
                self.preempt(batch.newest())
                self.set_pace()

    def watch(self, job: Job, iterations: int) -> None:
        """Its blocks reach so far; note it, if that is before its end."""
        if (job.decode_blocks + self.pinned_blocks(job)) * self.memory.block_tokens < job.tokens + job.left + 1:
            self.batch.fills_after(job, iterations)

    def preempt(self, job: Job) -> None:
        """Its memory goes; it begins again as a prompt of all it has so far, whose pass gives the next token."""
        had = self.batch.leave(job)
        self.charge(job)
        if job.refinement is not None:
            job.refinement.end()
            job.refinement = None
        self.memory.release(job.decode_blocks)
        job.reserved_s = math.nan
        self.due_blocks, job.due_blocks = self.due_blocks - job.due_blocks, 0
        self.unpin(job)
        job.pair, job.node = None, self.whole()
        job.tokens, job.left, job.prefilled, job.reserved = job.tokens + had + 1, job.left - had - 1, 0, False
        job.record.preemptions += 1
        self.promise_again(job)
        job.encode_s, job.promised_s = 0.0, self.costs.prefill_s(job.tokens)
        self.enqueue(job, first=True)

    # -- what happens to it ------------------------------------------------------------------------------------------------------

    def arrive(self, job: Job) -> None:
        """Its KV is here."""
        if job.gone:
            self.quit(job)
            return
        job.arrived = True
        if self.memory.cache is not None and job.request.hash_ids:
            self.keep_arrived(job)
        self.waiting.append(job)
        if self.places() > 0:
            self.attend()

    def places(self) -> int:
        return self.engine.max_batch - len(self.batch.heap) - self.locals

    def advance(self) -> None:
        """The leap's iterations are done, and the prompts' chunks beside the last of them."""
        leap, batch = self.leap, self.batch
        own_s = batch.leap_s(leap)
        seconds = own_s + self.chunk_s
        if leap:
            if batch.fresh:
                first_s = self.start_s + (batch.leap_s(1) + self.chunk_s)
                for job in batch.fresh:
                    if job.record.decode_token_s != job.record.decode_token_s:  # nan: not one that begins again
                        job.record.decode_token_s = first_s
                batch.fresh.clear()
            if not self.costs.decode_measured(len(batch.heap), batch.context, batch.context + (leap - 1) * len(batch.heap)):
                self.unmeasured_s = self.clock.now
            batch.go(leap, seconds, own_s)
            self.leap = 0
        if self.chunk:
            self.end_chunk(seconds)

    def release_finished(self) -> None:
        finished = self.batch.finished()
        if self.leaving:
            self.dismiss()
        if finished:
            self.set_pace()  # the batch is another one, also while others are expanded
        for job in finished:
            if job.gone:
                self.quit(job)
                continue
            job.record.finish_s = self.clock.now
            self.charge(job)
            job.record.extrapolated |= self.unmeasured_s > job.decode_start_s
            self.finish(job)

    def withdraw(self, job: Job) -> None:
        """It is given up, wherever it is on its way to the end of its decoding here."""
        job.gone = True
        if job.order:
            self.leaving.append(job)
            self.attend()
        elif job in self.waiting:
            self.waiting.remove(job)
            self.quit(job)

    def dismiss(self) -> None:
        """Those that were given up leave the batch."""
        for job in self.leaving:
            if job.order:
                self.batch.leave(job)
                self.charge(job)
                self.quit(job)
        self.leaving.clear()
        self.set_pace()

    def quit(self, job: Job, held: bool | None = None) -> None:
        """It decodes here no more, or never will. held: its memory is reserved; None: if reserved_s says so."""
        if not job.promised:
            return
        job.promised = False
        if job.refinement is not None:
            job.refinement.end()
            job.refinement = None
        if job.reserved_s == job.reserved_s if held is None else held:
            self.memory.release(job.decode_blocks)
        self.unpin(job)
        self.due_blocks, job.due_blocks = self.due_blocks - job.due_blocks, 0
        self.account(-1, -job.decode_blocks)
        if job.gone:
            self.freed()
        if not self.role:
            self.check_drained()

    def charge(self, job: Job) -> None:
        """For the iterations that it has been in."""
        job.record.decode_busy_s += self.batch.worked_s - job.worked_s
        job.record.cost_usd += (self.batch.share_s - job.share_s) * self.usd_per_s

    def decoded(self, job: Job) -> int:
        """Tokens that it has got here by the last iteration's end."""
        return self.batch.iterations - job.first_iteration if job.order else 0

    def finish(self, job: Job) -> None:
        held_s = self.clock.now - job.reserved_s
        self.residence_s = held_s if self.residence_s == 0 else RESIDENCE_KEEP * self.residence_s + (1 - RESIDENCE_KEEP) * held_s
        self.quit(job)
        self.done(job)

    def admit(self) -> list[Job]:
        """Those of the waiting that find a place in the batch, in order of arrival."""
        return [self.waiting.popleft() for _ in range(min(self.places(), len(self.waiting)))]

    def expand(self, jobs: list[Job]) -> float:
        """One after another; returns when the last one's KV is usable."""
        usable_s = self.clock.now
        for job in jobs:
            record = job.record
            expand_s = job.expand_s * self.batch.slow
            record.expand_busy_s += expand_s
            record.cost_usd += expand_s * self.usd_per_s
            usable_s += expand_s
            job.decode_start_s = usable_s
        return usable_s

    def join(self, jobs: list[Job]) -> None:
        batch = self.batch
        for job in jobs:
            if job.gone:
                self.quit(job)
                continue
            batch.join(job)
            if self.engine.grow_tokens:
                self.watch(job, (job.decode_blocks + self.pinned_blocks(job)) * self.memory.block_tokens - job.tokens)
        self.set_pace()

    def set_pace(self) -> None:
        self.tpot_s = self.batch.measure()
        self.mark()

    def plan(self) -> None:
        """Leap to the next change; only one iteration if somebody waits who finds a place after it, or prompts are computed beside it."""
        batch = self.batch
        self.start_s = self.clock.now
        batch.measure()
        self.leap = batch.reach() if batch.heap else 0
        if self.prompts:
            self.take()
        if self.chunk:
            self.leap = min(self.leap, 1)
            self.begin_chunk()
        elif not batch.heap:
            self.state = "idle"
            return
        elif self.chores or (self.waiting and self.places() > 0):
            self.leap = 1
        self.state = "iterating"
        self.wake.at(self.start_s + (batch.leap_s(self.leap) + self.chunk_s))

    # -- what the side of the prompts does ---------------------------------------------------------------------------------------

    prompts: deque[Job]

    def whole(self) -> PromptSide:
        raise NotImplementedError

    def enqueue(self, job: Job, first: bool = False) -> None:
        raise NotImplementedError

    def take(self) -> None:
        raise NotImplementedError

    def begin_chunk(self) -> None:
        raise NotImplementedError

    def end_chunk(self, seconds: float) -> None:
        raise NotImplementedError
