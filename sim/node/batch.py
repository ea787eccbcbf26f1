"""The requests that a node decodes together, and how far they can go before the batch changes, in closed form.

An iteration of B requests with S tokens of context takes f(B) + g S and gives each request a token, so S grows by B. k iterations
take k (f + g S) + g B k (k - 1) / 2, and the first iteration that ends after a given moment is the root of that square. Where costs are
pieces (sim.node.pace), a leap goes no further than its piece; where memory is taken bit by bit, no further than somebody's blocks reach.

Not modelled: kernel launch jitter, sampling time.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from sim.node.job import Job
from sim.node.pace import Pace


class Batch:
    """context: tokens of KV of all, at the start of the next iteration. share_s: iteration time, each divided by its batch: what one
    request in it has used of the GPU. slow: by how much everything takes longer. worked_s: iteration time."""

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
        "slow",
        "until",
        "worked_s",
    )

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.heap: list[tuple[int, int, Job]] = []  # (iteration after which it is complete, order of joining, request)
        self.full: list[tuple[int, int, Job]] = []  # the same for its blocks, of those that will need more
        self.fresh: list[Job] = []  # no token yet
        self.context = 0
        self.iterations = 0  # done since the run began
        self.joined = 0
        self.share_s = 0.0
        self.worked_s = 0.0
        self.slow = 1.0
        self.iteration_s = 0.0  # of the batch as it was when it was last measured
        self.growth_s = 0.0  # what each next one takes more
        self.until = math.inf  # context

    def __len__(self) -> int:
        return len(self.heap)

    def join(self, job: Job) -> None:
        job.share_s, job.worked_s, job.first_iteration = self.share_s, self.worked_s, self.iterations
        self.joined += 1
        job.order = self.joined
        self.context += job.tokens
        heappush(self.heap, (self.iterations + job.left, job.order, job))
        self.fresh.append(job)

    def fills_after(self, job: Job, tokens: int) -> None:
        """The job's blocks are full after so many more iterations."""
        heappush(self.full, (self.iterations + tokens, job.order, job))

    def filled(self) -> Job | None:
        """Who needs more memory before the next iteration, the first to join first."""
        full = self.full
        while full and (full[0][0] <= self.iterations or full[0][2].order != full[0][1]):
            if full[0][2].order == full[0][1]:
                return full[0][2]
            heappop(full)
        return None

    def finished(self) -> list[Job]:
        """Those that have their last token leave."""
        heap, done = self.heap, []
        while heap and heap[0][0] == self.iterations:
            _, _, job = heappop(heap)
            self.context -= job.tokens + job.left
            job.order = 0
            done.append(job)
        return done

    def leave(self, job: Job) -> int:
        """It leaves before its time. Returns how many iterations it has had."""
        at = next(entry for entry in self.heap if entry[2] is job)
        self.heap.remove(at)
        heapify(self.heap)
        had = job.left - (at[0] - self.iterations)
        self.context -= job.tokens + had
        job.order = 0
        if job in self.fresh:
            self.fresh.remove(job)
        return had

    def newest(self) -> Job:
        return max(self.heap, key=lambda entry: entry[1])[2]

    def measure(self) -> float:
        """Take the pace of the batch as it is; returns the time of its next iteration, 0 if it is empty."""
        if not self.heap:
            self.iteration_s = self.growth_s = 0.0
            return 0.0
        batch = len(self.heap)
        seconds, per_token, self.until = self.pace.piece(batch, self.context)
        self.iteration_s = seconds * self.slow
        self.growth_s = per_token * self.slow * batch
        return self.iteration_s

    def reach(self) -> int:
        """Iterations until somebody is complete, or has no more room, or costs change their slope."""
        until = self.heap[0][0]
        if self.full and self.full[0][0] < until:
            until = self.full[0][0]
        reach = until - self.iterations
        if self.until < math.inf:
            reach = min(reach, math.ceil((self.until - self.context) / len(self.heap)))
        return reach

    def leap_s(self, iterations: int) -> float:
        """Seconds of so many iterations of the batch as it was measured."""
        return iterations * self.iteration_s + self.growth_s * (iterations * (iterations - 1) // 2)

    def iterations_until(self, start_s: float, time_s: float) -> int:
        """The fewest iterations from start_s on that end at time_s or later."""
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

    def go(self, iterations: int, seconds: float, shared_s: float) -> None:
        """So many iterations are done; they took `seconds`, shared_s of them for the batch itself."""
        self.iterations += iterations
        self.context += iterations * len(self.heap)
        self.share_s += shared_s / len(self.heap)
        self.worked_s += seconds
