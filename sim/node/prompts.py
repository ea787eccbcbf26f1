"""A node's prompts. They are computed in order of arrival, whole or in chunks. Then the KV is encoded on the same GPU and sent.

KV memory for a prompt is reserved before it begins, except for the part of its prefix that is cached here. The memory stays reserved until
the decode side has acknowledged the transfer, so a slow link holds back prefill. A prompt that will be decoded here reserves its decode
memory at once.

Not modelled: encoding on another CUDA stream than the passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sim.job import Job
from sim.node.decoding import DecodeSide
from sim.node.gpu import Gpu
from sim.node.reservations import KvReservations
from sim.timers import Wake


class PromptSide:
    """The prompts of a node.

    waiting: prompts that are not in an iteration; the first one may be partly computed. computed: prompts whose last chunk is done.
    blocked: the first waiting prompt, while it waits for memory. busy_until_s: end of the running iteration and of the encoding after it.
    queue_s: expected seconds of work for the prompts that are not under way. encode_token_s: encoding seconds per token of the last prompt,
    used as the estimate for the next. done(job): called when a request ends here. released(): called when a request has released its
    prompt's memory.
    """

    def __init__(
        self,
        gpu: Gpu,
        reservations: KvReservations,
        decoding: DecodeSide,
        load_changed: Callable[[], None],
        done: Callable[[Job], None],
        released: Callable[[], None],
    ) -> None:
        self.gpu, self.reservations, self.decoding = gpu, reservations, decoding
        self.clock, self.costs, self.memory, self.engine, self.batch = gpu.clock, gpu.costs, gpu.memory, gpu.engine, gpu.batch
        self.load_changed, self.done, self.released = load_changed, done, released
        self.waiting: deque[Job] = deque()
        self.computed: deque[Job] = deque()
        self.blocked: Job | None = None
        self.granted = Wake(self.clock)  # fires when `blocked` has its memory
        self.busy_until_s = 0.0
        self.queue_s = 0.0
        self.encode_token_s = 0.0

    # -- what routing and the bitrate policy ask ---------------------------------------------------------------------------------

    @property
    def queued_s(self) -> float:
        left_s = self.busy_until_s - self.clock.now
        return self.queue_s + left_s if left_s > 0 else self.queue_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        costs = self.costs
        return costs.prefill_s(isl) - (costs.prefill_s(cached) - costs.prefill_s(0)) if cached else costs.prefill_s(isl)

    # -- the queue ---------------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take a new prompt. Its KV will be sent to the decode node of its pair, or be decoded here if it has no pair."""
        request = job.request
        cached = min(request.isl - 1, self.reservations.cached_tokens(request.hash_ids)) if request.hash_ids else 0
        job.prompt.queued_encode_s = 0.0 if job.pair is None else request.isl * self.encode_token_s
        job.prompt.queued_s = self.prefill_s(request.isl, cached) + job.prompt.queued_encode_s
        self.enqueue(job)

    def enqueue(self, job: Job, first: bool = False) -> None:
        """Add a prompt to the queue. first: before all others, except for one that has its memory and may be partly computed."""
        job.prompt.queued_at_s = self.clock.now
        self.queue_s += job.prompt.queued_s
        if first:
            self.waiting.insert(1 if self.waiting and self.waiting[0].prompt.has_memory else 0, job)
        else:
            self.waiting.append(job)
        self.load_changed()
        self.gpu.attend()

    def wait_for_plan(self) -> bool:
        """Whether the first prompt has come too late for the next iteration, but is in time for the one after."""
        return self.engine.planned_ahead and bool(self.waiting) and self.waiting[0].prompt.queued_at_s > self.gpu.planned_s

    def fill_chunk(self) -> None:
        """Choose the prompts, or parts of them, that the next iteration computes."""
        engine, waiting, chunk = self.engine, self.waiting, self.gpu.chunk
        room = engine.prefill_tokens if engine.prompts_first else engine.prefill_tokens - len(self.batch.heap)
        if self.blocked is not None and self.blocked is not waiting[0]:
            self.yield_turn(self.blocked)
        while waiting and (not chunk or room > 0):
            job = waiting[0]
            stage = job.prompt
            if self.wait_for_plan():
                break
            if not (stage.has_memory or self.reserve(job)):
                break
            tokens = left = job.prompt_tokens - stage.computed_tokens
            if engine.chunked:
                tokens = min(tokens, room)
            elif chunk and tokens > room:
                break
            chunk.append((job, tokens))
            room -= tokens
            part_s = stage.queued_s if tokens == left else (stage.queued_s - stage.queued_encode_s) * tokens / left
            self.queue_s -= part_s
            stage.queued_s -= part_s
            if tokens < left:
                break
            waiting.popleft()
            if not waiting:
                self.queue_s = 0.0

    # -- memory ------------------------------------------------------------------------------------------------------------------

    def reserve(self, job: Job) -> bool:
        """Reserve memory for the first prompt. Returns False if it has to wait for memory or for a place in the batch."""
        memory = self.memory
        if self.blocked is job:
            if memory.is_waiting(self.granted):
                return False
            self.granted.cancel()  # the memory was granted at this very time
            self.take_grant()
            return True
        if job.pair is None and self.decoding.places() <= 0:
            return False
        self.reservations.pin_prompt(job)
        if memory.can_reserve(blocks := self.reservations.blocks_to_prefill(job)):
            memory.reserve(blocks)
            self.begin(job)
            return True
        self.reservations.unpin_prompt(job)  # a request must not hold memory while it waits for memory that others hold
        self.blocked = job
        self.granted.waiter = self.unblock
        memory.wait_for(self.reservations.blocks_to_prefill(job), self.granted)
        self.load_changed()
        return False

    def begin(self, job: Job) -> None:
        """Account for a prompt that has got its memory."""
        job.prompt.has_memory = True
        if job.pair is None:
            self.decoding.local_prompts += 1
            self.reservations.hold(job)
            self.reservations.expect(job)

    def unblock(self) -> None:
        self.take_grant()
        self.gpu.attend()

    def take_grant(self) -> None:
        """The blocked prompt has got its memory: give back the blocks that the cache holds by now."""
        job, self.blocked = self.blocked, None
        assert job is not None
        had = self.reservations.blocks_to_prefill(job)
        self.reservations.pin_prompt(job)
        self.memory.release(had - self.reservations.blocks_to_prefill(job))
        self.begin(job)
        self.load_changed()

    def yield_turn(self, job: Job) -> None:
        """Another prompt was put before the blocked one: stop waiting for the blocked one's memory."""
        if self.memory.cancel_wait(self.granted):
            self.blocked = None
        else:  # the memory was granted at this very time, and nothing else can wait for what it has
            self.granted.cancel()
            self.take_grant()
            self.waiting.remove(job)
            self.waiting.appendleft(job)

    # -- iterations --------------------------------------------------------------------------------------------------------------

    def begin_chunk(self) -> None:
        """Plan the iteration's time: each part takes its own pass, less what the parts and the decode steps share.

        A prompt that begins waits for the worker to take it over first.
        """
        gpu, batch, now_s = self.gpu, self.batch, self.clock.now
        chunk = gpu.chunk
        total_s, encode_s = -self.costs.shared_s(len(batch.heap) if gpu.leap else 0, [tokens for _, tokens in chunk]), 0.0
        begins = any(job.prompt.start_s != job.prompt.start_s for job, _ in chunk)  # NaN: the prompt has not begun
        gpu.handover_s = self.costs.handover_s * self.batch.slowdown if begins else 0.0
        for job, tokens in chunk:
            stage = job.prompt
            if stage.start_s != stage.start_s:
                stage.start_s = now_s + gpu.handover_s
            if stage.restored_tokens:  # the copy from host memory goes before the prompt's first pass
                total_s += stage.restored_tokens * self.costs.kv_bytes_per_token / self.engine.host_bytes_per_s
                stage.restored_tokens = 0
            total_s += self.prefill_s(stage.computed_tokens + tokens, stage.computed_tokens)
            if stage.computed_tokens + tokens == job.prompt_tokens:
                encode_s += stage.queued_encode_s
        gpu.chunk_s, gpu.codec_s = gpu.handover_s + total_s * batch.slowdown, 0.0
        self.busy_until_s = now_s + gpu.chunk_s + batch.leap_s(gpu.leap) + encode_s
        self.load_changed()
        if len(chunk) == 1 and job.pair is not None and job.decode_iterations and stage.computed_tokens + tokens == job.prompt_tokens:
            job.pair.begin_pass(job, batch.leap_s(gpu.leap) + gpu.chunk_s)

    def end_chunk(self, seconds: float) -> None:
        """The iteration is done and took `seconds`. Each prompt is charged for the time added to it, in proportion to its own pass time."""
        gpu = self.gpu
        alone_s = [self.prefill_s(job.prompt.computed_tokens + tokens, job.prompt.computed_tokens) for job, tokens in gpu.chunk]
        price = (gpu.chunk_s - gpu.codec_s - gpu.handover_s) / total_s * gpu.usd_per_s if (total_s := sum(alone_s)) > 0 else 0.0
        for (job, tokens), part_s in zip(gpu.chunk, alone_s):
            job.cost_usd += part_s * price
            job.prompt.busy_s += seconds - gpu.codec_s - gpu.handover_s
            job.prompt.computed_tokens += tokens
            if job.prompt.computed_tokens == job.prompt_tokens:
                self.computed.append(job)
        gpu.chunk.clear()
        gpu.chunk_s = gpu.codec_s = gpu.handover_s = 0.0

    # -- after the pass ----------------------------------------------------------------------------------------------------------

    def encode(self, job: Job) -> float:
        """The first token is known. The bitrate policy decides how the KV is encoded. Returns the time at which it is encoded."""
        now_s, isl, stage = self.clock.now, job.request.isl, job.prompt
        if job.aborted:
            return now_s
        self.reservations.cache_computed(job)
        self.busy_until_s = now_s + sum(other.prompt.queued_encode_s for other in self.computed)
        if stage.token_s != stage.token_s:  # NaN: it does not begin again after a preemption
            stage.token_s = now_s
            job.extrapolated |= not self.costs.prefill_measured(isl)
        if job.pair is None or job.request.osl == 1:
            self.load_changed()
            return now_s
        if job.transfer.pipeline is None:
            job.pair.decide(job)
            encode_s = self.costs.encode_s(job.sent_tokens, job.transfer.decision) * self.batch.slowdown
        else:
            encode_s = job.transfer.pipeline.left_to_encode_s()
        stage.encode_busy_s += encode_s
        job.extrapolated |= not self.costs.codec_measured(job.sent_tokens)
        job.cost_usd += encode_s * self.gpu.usd_per_s
        self.encode_token_s = stage.encode_busy_s / isl
        self.busy_until_s += encode_s
        self.load_changed()
        return now_s + encode_s

    def finish(self, job: Job) -> None:
        """The KV is encoded: give it to the sender or to the batch, or end a request whose only token is known."""
        now_s = self.clock.now
        if job.aborted:
            self.decoding.local_prompts -= job.pair is None
            self.release_all(job)
        elif job.pair is not None and job.decode_iterations:
            job.transfer.ready_s = now_s
            job.pair.target.reservations.expect(job)
            if job.transfer.pipeline is None:
                job.pair.enqueue(job)
            else:
                job.transfer.pipeline.finish()
        elif job.decode_iterations:
            self.decoding.local_prompts -= 1
            self.start_here(job)
            self.decoding.join([job])
        else:
            if job.decoding.token_s != job.decoding.token_s:  # NaN: no token from a batch before a preemption
                job.decoding.token_s = now_s
            self.start_here(job)
            job.finish_s = now_s
            if job.pair is None:
                self.decoding.local_prompts -= 1
                self.decoding.finish(job)
            else:
                self.release(job)
                self.done(job)

    def start_here(self, job: Job) -> None:
        """Start decoding on the node that computed the KV; nothing is sent or expanded."""
        if job.decoding.start_s != job.decoding.start_s:  # NaN: it does not begin again after a preemption
            job.transfer.ready_s = job.transfer.arrived_s = job.decoding.start_s = self.clock.now

    # -- release -----------------------------------------------------------------------------------------------------------------

    def release(self, job: Job) -> None:
        """Release the prompt's memory, because its KV has been acknowledged or is not needed any more."""
        self.memory.release(job.prompt.blocks)
        job.prompt.blocks = 0
        self.reservations.unpin_prompt(job)
        self.released()

    def release_all(self, job: Job) -> None:
        """Release the memory of an aborted job, here and where it was to be decoded."""
        if job.pair is None:
            self.reservations.close(job)
        else:
            if job.transfer.in_backlog:
                job.pair.leave_backlog(job)
            self.release(job)
            job.pair.target.reservations.close(job)

    def abort(self, job: Job) -> None:
        """Abort the job before its KV is sent. A chunk or an encoding that has begun runs to its end; then the job is released."""
        job.aborted = True
        if job not in self.waiting:
            return
        self.waiting.remove(job)
        self.queue_s = self.queue_s - job.prompt.queued_s if self.waiting else 0.0
        if self.blocked is job:
            self.blocked = None
            if self.memory.cancel_wait(self.granted):
                job.prompt.blocks = 0
            else:  # the memory was granted at this very time
                self.granted.cancel()
                if job.pair is None:
                    self.reservations.hold(job)
        elif not job.prompt.has_memory:
            job.prompt.blocks = 0
        else:
            self.decoding.local_prompts -= job.pair is None
        self.release_all(job)
        self.load_changed()
        if self.waiting:
            self.gpu.attend()  # the next prompt may be able to begin now
