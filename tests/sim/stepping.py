"""The reference for runs that skip iterations: one event for each iteration. Each request's context, free tokens and share of the time are
counted one iteration at a time, without closed forms."""

from __future__ import annotations

from sim.job import Job
from sim.node.batch import Batch
from sim.node.decoding import DecodeSide
from sim.node.gpu import Gpu
from sim.node.node import Node
from sim.node.prompts import PromptSide


class Counting(Batch):
    """A batch that counts each request's tokens one by one. `heap` is a plain list, in order of joining."""

    def __init__(self, pace) -> None:
        super().__init__(pace)
        self.tokens: dict[Job, int] = {}  # generated in this batch
        self.rooms: dict[Job, int] = {}  # iterations until its blocks are full
        self.asked: Job | None = None
        self.used_s: dict[Job, float] = {}
        self.busy_s: dict[Job, float] = {}

    def join(self, job: Job) -> None:
        self.joined += 1
        job.decoding.order, job.decoding.first_iteration = self.joined, self.iterations
        self.heap.append((0, self.joined, job))
        self.tokens[job], self.used_s[job], self.busy_s[job] = 0, 0.0, 0.0

    def fills_after(self, job: Job, iterations: int) -> None:
        self.rooms[job] = iterations

    def filled(self) -> Job | None:
        if self.asked is not None and not self.full and self.rooms.get(self.asked) == 0:
            del self.rooms[self.asked]  # it already has all the memory that it will need
        self.asked = next((job for _, _, job in self.heap if self.rooms.get(job) == 0), None)
        self.full[:] = [(0, 0, self.asked)] if self.asked else []  # the decode side removes it when it gives the job room
        return self.asked

    def leave(self, job: Job) -> int:
        self.heap.remove(next(entry for entry in self.heap if entry[2] is job))
        self.rooms.pop(job, None)
        job.decoding.order = 0
        return self.tokens[job]

    def finished(self) -> list[Job]:
        done = [job for _, _, job in self.heap if self.tokens[job] == job.decode_iterations]
        for job in done:
            self.leave(job)
        return done

    def now_s(self) -> float:
        context = sum(job.prompt_tokens + self.tokens[job] for _, _, job in self.heap)
        return self.pace.piece(len(self.heap), context)[0] * self.slowdown if self.heap else 0.0

    measure = now_s


class SteppingGpu(Gpu):
    def attend(self) -> None:
        if self.state == "idle":
            self.state = "stepping"
            self.wake.after(0.0)


class SteppingDecodeSide(DecodeSide):
    def charge(self, job: Job) -> None:
        job.decoding.busy_s += self.batch.busy_s[job]
        job.cost_usd += self.batch.used_s[job] * self.gpu.usd_per_s


class SteppingPromptSide(PromptSide):
    def begin_chunk(self) -> None:
        """The definition of a chunk's cost: the work of each part, and one overhead."""
        gpu, now_s, overhead_s, done_s = self.gpu, self.clock.now, self.costs.prefill_s(0), self.costs.prefill_s
        work_s, encode_s = 0.0, 0.0
        for job, tokens in gpu.chunk:
            computed = job.prompt.computed_tokens
            if job.prompt.start_s != job.prompt.start_s:
                job.prompt.start_s = now_s
            work_s += done_s(computed + tokens) - done_s(computed)
            encode_s += job.prompt.queued_encode_s if computed + tokens == job.prompt_tokens else 0.0
        extra_s = max(overhead_s, gpu.pace.overhead_s) - gpu.pace.overhead_s if self.batch.heap else overhead_s
        gpu.chunk_s = (work_s + extra_s) * self.batch.slowdown
        self.busy_until_s = now_s + gpu.chunk_s + self.batch.now_s() + encode_s


class SteppingNode(Node):
    gpu_class = SteppingGpu
    batch_class = Counting
    decoding_class = SteppingDecodeSide
    prompts_class = SteppingPromptSide

    def run(self):
        gpu, prompts, decoding = self.gpu, self.prompts, self.decoding
        batch, clock, wake = gpu.batch, gpu.clock, gpu.wake
        while True:
            if not (batch.heap or decoding.waiting or prompts.waiting or prompts.computed):
                gpu.state = "idle"
                yield wake
            while prompts.computed:
                job = prompts.computed.popleft()
                encoded_s = prompts.encode(job)
                if encoded_s > clock.now:
                    yield wake.at(encoded_s)
                prompts.finish(job)
            decoding.make_room()
            joining = []
            while decoding.waiting and len(batch.heap) + len(joining) + decoding.local_prompts < gpu.engine.max_batch:
                joining.append(decoding.waiting.popleft())
            for job in joining:
                job.decoding.expand_busy_s = job.transfer.expand_s * batch.slowdown
                job.cost_usd += job.decoding.expand_busy_s * gpu.usd_per_s
                yield wake.after(job.decoding.expand_busy_s)
                job.decoding.start_s = clock.now
            if joining:
                decoding.join(joining)
            if decoding.leaving:
                decoding.remove_aborted()
            prompts.fill_chunk()
            if gpu.chunk:
                prompts.begin_chunk()
            elif not batch.heap:
                gpu.state = "idle"  # the prompts that are left wait for memory
                yield wake
                continue
            own_s = batch.now_s()
            seconds = own_s + gpu.chunk_s
            context = sum(job.prompt_tokens + batch.tokens[job] for _, _, job in batch.heap)
            measured = not batch.heap or self.costs.decode_measured(len(batch.heap), context, context)
            yield wake.after(seconds)
            for _, _, job in batch.heap:
                batch.tokens[job] += 1
                batch.used_s[job] += own_s / len(batch.heap)
                batch.busy_s[job] += seconds
                if job in batch.rooms:
                    batch.rooms[job] -= 1
                job.extrapolated |= not measured
                if job.decoding.token_s != job.decoding.token_s:
                    job.decoding.token_s = clock.now
            batch.fresh.clear()
            if gpu.chunk:
                prompts.end_chunk(seconds)
            decoding.release_finished()
