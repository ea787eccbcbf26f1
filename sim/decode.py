"""A decode node: continuous batching, one event for each change of the batch, however many tokens lie between.

An iteration of B requests with S tokens of context takes f(B) + g S and gives each request a token, so S grows by B. k iterations
take k (f + g S) + g B k (k - 1) / 2, and the first iteration that ends after a given moment is the root of that square.

KV that has arrived waits for the end of the running iteration, is expanded on the node's own time (iterations pause), and joins the
batch; what arrives meanwhile waits for the next iteration's end. The first iteration of a request reads its isl tokens of KV and
gives its second token (the first one came from prefill).

Not modelled: kernel launch jitter, sampling time, CUDA-graph batch sizes, preemption (memory for the whole answer is reserved
before its KV is sent).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush

from simpy.events import Event

from sim.clock import Clock, Wake
from sim.cost import Costs
from sim.job import Job
from sim.memory import Memory

RESIDENCE_KEEP = 0.9  # weight of the past in the mean time that a request holds memory


class DecodeNode:
    """Also what routing sees of it (abkt.policy.view.DecodeLoad). done(job): called when a request has its last token.

    active, kv_used: requests placed here and not finished, and their memory, promised or taken. tpot_s: one iteration's time at the
    last change of the batch, 0 if it is empty.
    """

    def __init__(
        self, clock: Clock, name: str, costs: Costs, memory: Memory, usd_per_hour: float, max_batch: int, done: Callable[[Job], None]
    ) -> None:
        self.clock = clock
        self.name = name
        self.costs = costs
        self.memory = memory
        self.usd_per_s = usd_per_hour / 3600
        self.max_batch = max_batch
        self.done = done
        self.wake = Wake(clock)
        self.waiting: deque[Job] = deque()  # arrived, not expanded
        self.batch: list[tuple[int, int, Job]] = []  # heap of (iteration after which it is complete, order of joining, request)
        self.fresh: list[Job] = []  # in the batch, no token yet
        self.context = 0  # tokens of KV of the batch, at the start of the next iteration
        self.iterations = 0  # done since the run began
        self.joined = 0
        self.state = "idle"  # idle | expanding | iterating
        self.start_s = 0.0  # of the leap
        self.leap = 0  # iterations of the leap
        self.share_s = 0.0  # iteration time, each divided by its batch: what one request in it has used of the GPU
        self.worked_s = 0.0  # iteration time
        self.unmeasured_s = -math.inf  # end of the last leap outside the profile's range
        self.active = 0
        self.promised_blocks = 0
        self.kv_used = 0.0
        self.tpot_s = 0.0
        self.residence_s = 0.0
        clock.process(self.run())

    # -- what routing and the bitrate policy ask ---------------------------------------------------------------------------------

    def wait_s(self, isl: int) -> float:
        """Until memory and a place in the batch are free, if what is taken keeps turning over at its usual pace."""
        missing = self.promised_blocks + self.memory.blocks_for(isl) - self.memory.blocks
        crowd = self.active + 1 - self.max_batch
        if missing <= 0 >= crowd:
            return 0.0
        return self.residence_s * max(missing / self.memory.blocks, crowd / self.max_batch)

    # -- what happens to it ------------------------------------------------------------------------------------------------------

    def promise(self, job: Job) -> None:
        job.decode_blocks = self.memory.blocks_for(job.request.isl + job.request.osl)
        self._account(1, job.decode_blocks)

    def arrive(self, job: Job) -> None:
        self.waiting.append(job)
        if self.state == "idle":
            self.state = "iterating"
            self.start_s, self.leap = self.clock.now, 0
            self.wake.after(0.0)
        elif self.state == "iterating" and len(self.batch) < self.max_batch:
            self.leap = min(self.leap, self.iterations_until(self.clock.now))
            self.wake.at(self.start_s + self.leap_s(self.leap))

    def run(self) -> Generator[Event, None, None]:
        while True:
            yield self.wake
            self.advance()
            self.release_finished()
            if admitted := self.admit():
                self.state = "expanding"
                yield self.wake.at(self.expand(admitted))
                self.join(admitted)
            self.plan()

    def advance(self) -> None:
        """The leap's iterations are done."""
        if self.leap == 0:
            return
        batch, seconds = len(self.batch), self.leap_s(self.leap)
        for job in self.fresh:
            job.record.decode_token_s = self.start_s + self.leap_s(1)
        self.fresh.clear()
        last_context = self.context + (self.leap - 1) * batch
        if not self.costs.decode_measured(batch, self.context, last_context):
            self.unmeasured_s = self.clock.now
        self.iterations += self.leap
        self.context += self.leap * batch
        self.share_s += seconds / batch
        self.worked_s += seconds

    def release_finished(self) -> None:
        batch, now_s = self.batch, self.clock.now
        finished: list[Job] = []
        while batch and batch[0][0] == self.iterations:
            job = heappop(batch)[2]
            request, record = job.request, job.record
            self.context -= request.isl + request.osl - 1
            record.finish_s = now_s
            record.decode_busy_s = self.worked_s - job.worked_s
            record.cost_usd += (self.share_s - job.share_s + record.expand_busy_s) * self.usd_per_s
            record.extrapolated |= self.unmeasured_s > job.decode_start_s
            finished.append(job)
        if finished:
            self.set_pace()  # the batch is another one, also while others are expanded
        for job in finished:
            self.finish(job)

    def finish(self, job: Job) -> None:
        self.memory.release(job.decode_blocks)
        self._account(-1, -job.decode_blocks)
        held_s = self.clock.now - job.reserved_s
        self.residence_s = held_s if self.residence_s == 0 else RESIDENCE_KEEP * self.residence_s + (1 - RESIDENCE_KEEP) * held_s
        self.done(job)

    def admit(self) -> list[Job]:
        """Those of the waiting that find a place in the batch, in order of arrival."""
        places = self.max_batch - len(self.batch)
        return [self.waiting.popleft() for _ in range(min(places, len(self.waiting)))]

    def expand(self, jobs: list[Job]) -> float:
        """One after another; returns when the last one's KV is usable."""
        usable_s = self.clock.now
        for job in jobs:
            job.record.expand_busy_s = self.costs.expand_s(job.request.isl, job.decision.mode, job.wire_bits)
            usable_s += job.record.expand_busy_s
            job.decode_start_s = usable_s
        return usable_s

    def join(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.share_s, job.worked_s = self.share_s, self.worked_s
            self.joined += 1
            self.context += job.request.isl
            heappush(self.batch, (self.iterations + job.request.osl - 1, self.joined, job))
        self.fresh += jobs
        self.set_pace()

    def set_pace(self) -> None:
        self.tpot_s = self.costs.iteration_s(len(self.batch), self.context) if self.batch else 0.0

    def plan(self) -> None:
        """Leap to the next completion; only one iteration if somebody waits who finds a place after it."""
        if not self.batch:
            self.state = "idle"
            return
        self.state = "iterating"
        self.start_s = self.clock.now
        self.leap = 1 if self.waiting and len(self.batch) < self.max_batch else self.batch[0][0] - self.iterations
        self.wake.at(self.start_s + self.leap_s(self.leap))

    # -- closed forms ------------------------------------------------------------------------------------------------------------

    def leap_s(self, iterations: int) -> float:
        """Seconds of so many iterations of the batch as it is."""
        batch = len(self.batch)
        growth_s = self.costs.context_s * batch * (iterations * (iterations - 1) // 2)
        return iterations * self.costs.iteration_s(batch, self.context) + growth_s

    def iterations_until(self, time_s: float) -> int:
        """The fewest iterations of the leap that end at time_s or later."""
        square = self.costs.context_s * len(self.batch) / 2
        linear = self.costs.iteration_s(len(self.batch), self.context) - square
        elapsed_s = time_s - self.start_s
        if not self.batch or elapsed_s <= 0:
            return 0
        count = math.ceil(2 * elapsed_s / (linear + math.sqrt(linear * linear + 4 * square * elapsed_s)))
        while self.start_s + self.leap_s(count) < time_s:
            count += 1
        while count > 0 and self.start_s + self.leap_s(count - 1) >= time_s:
            count -= 1
        return count

    def _account(self, requests: int, blocks: int) -> None:
        self.active += requests
        self.promised_blocks += blocks
        self.kv_used = self.promised_blocks / self.memory.blocks
