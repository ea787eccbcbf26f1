"""The requests that a node decodes together, and how far they can go before the batch changes, in closed form.

An iteration of B requests with S tokens of context takes f(B) + g S and gives each request a token, so S grows by B. k iterations take
k (f + g S) + g B k (k - 1) / 2. The number of iterations until a given time is the root of that quadratic. A leap is a run of iterations in
which the batch does not change. Where costs are piecewise linear (sim.node.pace), a leap ends with its piece. Where memory grows step by
step, it ends when the blocks of the first request are full.

Not modelled: kernel launch jitter, sampling time.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from sim.job import Job
from sim.node.pace import Pace


class Batch:
    """The decode batch of one node.

    context: KV tokens of all requests at the start of the next iteration. worked_s: sum of iteration times. share_s: sum of iteration
    times, each divided by the batch size: the GPU time of a request that was in every iteration. slowdown: factor on all times.
    iteration_s, growth_s: time of the next iteration and the extra time of each further one, as last measured; valid up to context `until`.
    """

    __slots__ = (
        "context",
        "fresh",
        "full",
        "growth_s",
        "heap",
        "iteration_s",
        "iterations",
        "joined",
        "pace",
        "share_s",
        "slowdown",
        "until",
        "worked_s",
    )

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.heap: list[tuple[int, int, Job]] = []  # (iteration after which it is complete, order of joining, job)
        self.full: list[tuple[int, int, Job]] = []  # (iteration after which its blocks are full, order, job), for jobs that will need more
        self.fresh: list[Job] = []  # jobs that have no token from this batch yet
        self.context = 0
        self.iterations = 0  # iterations done since the run began
        self.joined = 0
        self.share_s = 0.0
        self.worked_s = 0.0
        self.slowdown = 1.0
        self.iteration_s = 0.0
        self.growth_s = 0.0
        self.until = math.inf

    def __len__(self) -> int:
        return len(self.heap)

    def join(self, job: Job) -> None:
        stage = job.decoding
        stage.share_s, stage.worked_s, stage.first_iteration = self.share_s, self.worked_s, self.iterations
        self.joined += 1
        stage.order = self.joined
        self.context += job.prompt_tokens
        heappush(self.heap, (self.iterations + job.decode_iterations, stage.order, job))
        self.fresh.append(job)

    def fills_after(self, job: Job, iterations: int) -> None:
        """Note that the job's blocks are full after this many more iterations."""
        heappush(self.full, (self.iterations + iterations, job.decoding.order, job))

    def filled(self) -> Job | None:
        """The job that needs more memory before the next iteration; if there are several, the one that joined first."""
        full = self.full
        while full and (full[0][0] <= self.iterations or full[0][2].decoding.order != full[0][1]):
            if full[0][2].decoding.order == full[0][1]:
                return full[0][2]
            heappop(full)
        return None

    def finished(self) -> list[Job]:
        """Remove the jobs that have their last token from the batch, and return them."""
        heap, done = self.heap, []
        while heap and heap[0][0] == self.iterations:
            _, _, job = heappop(heap)
            self.context -= job.prompt_tokens + job.decode_iterations
            job.decoding.order = 0
            done.append(job)
        return done

    def leave(self, job: Job) -> int:
        """Remove a job before its end. Returns how many iterations it has had."""
        entry = next(entry for entry in self.heap if entry[2] is job)
        self.heap.remove(entry)
        heapify(self.heap)
        had = job.decode_iterations - (entry[0] - self.iterations)
        self.context -= job.prompt_tokens + had
        job.decoding.order = 0
        if job in self.fresh:
            self.fresh.remove(job)
        return had

    def newest(self) -> Job:
        return max(self.heap, key=lambda entry: entry[1])[2]

    def measure(self) -> float:
        """Update iteration_s and growth_s for the present batch; returns the time of its next iteration, 0 if it is empty."""
        if not self.heap:
            self.iteration_s = self.growth_s = 0.0
            return 0.0
        batch = len(self.heap)
        seconds, per_token, self.until = self.pace.piece(batch, self.context)
        self.iteration_s = seconds * self.slowdown
        self.growth_s = per_token * self.slowdown * batch
        return self.iteration_s

    def reach(self) -> int:
        """Iterations until a request is complete, its blocks are full, or the slope of the costs changes."""
        until = self.heap[0][0]
        if self.full and self.full[0][0] < until:
            until = self.full[0][0]
        reach = until - self.iterations
        if self.until < math.inf:
            reach = min(reach, math.ceil((self.until - self.context) / len(self.heap)))
        return reach

    def leap_s(self, iterations: int) -> float:
        """Seconds of this many iterations of the batch as last measured."""
        return iterations * self.iteration_s + self.growth_s * (iterations * (iterations - 1) // 2)

    def iterations_until(self, start_s: float, time_s: float) -> int:
        """The smallest number of iterations from start_s on that ends at time_s or later."""
        elapsed_s = time_s - start_s
        if not self.heap or elapsed_s <= 0:
            return 0
        square = self.growth_s / 2
        linear = self.iteration_s - square
        count = math.ceil(2 * elapsed_s / (linear + math.sqrt(linear * linear + 4 * square * elapsed_s)))
        while start_s + self.leap_s(count) < time_s:
            count += 1
        while count > 0 and start_s + self.leap_s(count - 1) >= time_s:
            count -= 1
        return count

    def advance(self, iterations: int, seconds: float, own_s: float) -> None:
        """Count iterations that are done. They took `seconds`, of which own_s was for the batch itself."""
        self.iterations += iterations
        self.context += iterations * len(self.heap)
        self.share_s += own_s / len(self.heap)
        self.worked_s += seconds
