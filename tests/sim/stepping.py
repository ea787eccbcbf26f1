"""The oracle of the leaps: one event an iteration, every request's context, room and share counted on its own, no closed form."""

from __future__ import annotations

from sim.node.batch import Batch
from sim.node.job import Job
from sim.node.node import Node


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
        job.order, job.first_iteration = self.joined, self.iterations
        self.heap.append((0, job.order, job))
        self.tokens[job], self.used_s[job], self.busy_s[job] = 0, 0.0, 0.0

    def fills_after(self, job: Job, tokens: int) -> None:
        self.rooms[job] = tokens

    def filled(self) -> Job | None:
        if self.asked is not None and not self.full and self.rooms.get(self.asked) == 0:
            del self.rooms[self.asked]  # it was given all it will ever need
        self.asked = next((job for _, _, job in self.heap if self.rooms.get(job) == 0), None)
        self.full[:] = [(0, 0, self.asked)] if self.asked else []  # whoever gives it room takes it away
        return self.asked

    def leave(self, job: Job) -> int:
        self.heap.remove(next(entry for entry in self.heap if entry[2] is job))
        self.rooms.pop(job, None)
        job.order = 0
        return self.tokens[job]

    def finished(self) -> list[Job]:
        done = [job for _, _, job in self.heap if self.tokens[job] == job.left]
        for job in done:
            self.leave(job)
        return done

    def now_s(self) -> float:
        context = sum(job.tokens + self.tokens[job] for _, _, job in self.heap)
        return self.pace.piece(len(self.heap), context)[0] * self.slow if self.heap else 0.0

    measure = now_s


class SteppingNode(Node):
    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.batch = Counting(self.pace)

    def attend(self) -> None:
        if self.state == "idle":
            self.state = "stepping"
            self.wake.after(0.0)

    def charge(self, job: Job) -> None:
        job.record.decode_busy_s += self.batch.busy_s[job]
        job.record.cost_usd += self.batch.used_s[job] * self.usd_per_s

    def begin_chunk(self) -> None:
        """By definition: each part's own work, and one overhead."""
        now_s, overhead_s, done_s = self.clock.now, self.costs.prefill_s(0), self.costs.prefill_s
        work_s, encode_s = 0.0, 0.0
        for job, tokens in self.chunk:
            if job.prefill_start_s != job.prefill_start_s:
                job.prefill_start_s = now_s
            work_s += done_s(job.prefilled + tokens) - done_s(job.prefilled)
            encode_s += job.encode_s if job.prefilled + tokens == job.tokens else 0.0
        extra_s = max(overhead_s, self.pace.overhead_s) - self.pace.overhead_s if self.batch.heap else overhead_s
        self.chunk_s = (work_s + extra_s) * self.batch.slow
        self.busy_until_s = now_s + self.chunk_s + self.batch.now_s() + encode_s

    def run(self):
        batch = self.batch = Counting(self.pace)
        while True:
            if not (batch.heap or self.waiting or self.prompts or self.prefilled):
                self.state = "idle"
                yield self.wake
            while self.prefilled:
                job = self.prefilled.popleft()
                encoded_s = self.encode(job)
                if encoded_s > self.clock.now:
                    yield self.wake.at(encoded_s)
                self.hand_over(job)
            self.make_room()
            joining = []
            while self.waiting and len(batch.heap) + len(joining) + self.locals < self.engine.max_batch:
                joining.append(self.waiting.popleft())
            for job in joining:
                job.record.expand_busy_s = job.expand_s * batch.slow
                job.record.cost_usd += job.record.expand_busy_s * self.usd_per_s
                yield self.wake.after(job.record.expand_busy_s)
                job.decode_start_s = self.clock.now
            if joining:
                self.join(joining)
            if self.leaving:
                self.dismiss()
            self.take()
            if self.chunk:
                self.begin_chunk()
            elif not batch.heap:
                self.state = "idle"  # whoever is left waits for memory
                yield self.wake
                continue
            own_s = batch.now_s()
            seconds = own_s + self.chunk_s
            context = sum(job.tokens + batch.tokens[job] for _, _, job in batch.heap)
            measured = not batch.heap or self.costs.decode_measured(len(batch.heap), context, context)
            yield self.wake.after(seconds)
            for _, _, job in batch.heap:
                batch.tokens[job] += 1
                batch.used_s[job] += own_s / len(batch.heap)
                batch.busy_s[job] += seconds
                if job in batch.rooms:
                    batch.rooms[job] -= 1
                job.record.extrapolated |= not measured
                if job.record.decode_token_s != job.record.decode_token_s:
                    job.record.decode_token_s = self.clock.now
            batch.fresh.clear()
            if self.chunk:
                self.end_chunk(seconds)
            self.release_finished()
