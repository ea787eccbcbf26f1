"""A node's prompts: in order of arrival, whole or in chunks; then the KV is encoded on the same GPU and given to the sender.

KV memory for a prompt is reserved before it begins, the part of its prefix that is cached here less, and stays taken until the decode side
has acknowledged its transfer, so a slow link holds back prefill. A prompt that will be decoded here takes its decode memory at once.

Not modelled: encoding on another stream than the passes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from simpy.events import Event

from sim.clock import Wake
from sim.node.decode import DecodeSide
from sim.node.job import Job


class PromptSide(DecodeSide):
    """Also what routing sees of it (abkt.policy.routing.base.PrefillLoad). free_s: when its prompts are done if nothing delays them."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.prompts: deque[Job] = deque()
        self.prefilled: deque[Job] = deque()  # their last chunk is done
        self.blocked: Job | None = None  # the first prompt, while it waits for memory
        self.granted = Wake(self.clock)
        self.busy_until_s = 0.0
        self.waiting_s = 0.0  # of the prompts that are not under way
        self.encode_token_s = 0.0  # encoding seconds per token of the last prompt: what is expected of the next

    # -- what routing and the bitrate policy ask ---------------------------------------------------------------------------------

    @property
    def queued_s(self) -> float:
        left_s = self.busy_until_s - self.clock.now
        return self.waiting_s + left_s if left_s > 0 else self.waiting_s

    @property
    def free_s(self) -> float:
        return self.busy_until_s + self.waiting_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        costs = self.costs
        return costs.prefill_s(isl) - (costs.prefill_s(cached) - costs.prefill_s(0)) if cached else costs.prefill_s(isl)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        cache = self.memory.cache
        return cache.match(hash_ids, self.engine.reuse_distortion) * cache.hash_tokens if cache is not None else 0

    def wait_s(self, isl: int) -> float:
        """As the decode side says, and until the prompts that come before it here are done."""
        return super().wait_s(isl) + (self.queued_s if self.prompts or self.chunk else 0.0)

    # -- what happens to it ------------------------------------------------------------------------------------------------------

    def whole(self) -> PromptSide:
        return self

    def submit(self, job: Job) -> None:
        """A prompt, to be sent to the decode node of its pair, or decoded here where it has none."""
        request = job.request
        cached = min(request.isl - 1, self.cached_tokens(request.hash_ids)) if request.hash_ids else 0
        job.encode_s = 0.0 if job.pair is None else request.isl * self.encode_token_s
        job.promised_s = self.prefill_s(request.isl, cached) + job.encode_s
        self.enqueue(job)

    def enqueue(self, job: Job, first: bool = False) -> None:
        self.waiting_s += job.promised_s
        if first:  # but for one that has its memory, and may be half computed
            self.prompts.insert(1 if self.prompts and self.prompts[0].reserved else 0, job)
        else:
            self.prompts.append(job)
        self.mark()
        self.attend()

    def take(self) -> None:
        """The prompts, or parts of them, of the next iteration."""
        engine, prompts = self.engine, self.prompts
        budget = engine.prefill_tokens
        room = budget - len(self.batch.heap)
        if self.blocked is not None and self.blocked is not prompts[0]:
            self.make_way(self.blocked)
        while prompts and (not self.chunk or room > 0):
            job = prompts[0]
            if not (job.reserved or self.reserve(job)):
                break
            tokens = left = job.tokens - job.prefilled
            if engine.chunked:
                tokens = min(tokens, room)
            elif self.chunk and tokens > room:
                break
            self.chunk.append((job, tokens))
            room -= tokens
            part_s = job.promised_s if tokens == left else (job.promised_s - job.encode_s) * tokens / left
            self.waiting_s -= part_s
            job.promised_s -= part_s
            if tokens < left:
                break
            prompts.popleft()
            if not prompts:
                self.waiting_s = 0.0

    def reserve(self, job: Job) -> bool:
        """The first prompt's memory. False: it waits for it, or for a place to decode."""
        memory = self.memory
        if self.blocked is job:
            if memory.waits(self.granted):
                return False
            self.granted.cancel()  # it was granted at this very moment
            self.grant()
            return True
        if job.pair is None and self.places() <= 0:
            return False
        self.take_prefix(job)
        if memory.can_reserve(blocks := self.blocks_to_begin(job)):
            memory.reserve(blocks)
            self.admit_prompt(job)
            return True
        self.release_prefix(job)  # nobody holds what others wait for, and waits himself
        self.blocked = job
        self.granted.callbacks = [self.unblock]
        memory.waited_for(self.blocks_to_begin(job), self.granted)
        self.mark()
        return False

    def take_prefix(self, job: Job) -> None:
        """What is cached of its prompt is in use, and need not be computed; one token at least must."""
        cache = self.memory.cache
        if cache is not None and job.request.hash_ids:
            hash_ids = cache.whole(job.request.hash_ids, job.request.isl - 1)
            job.pinned = hash_ids[: cache.match(hash_ids, self.engine.reuse_distortion)]
            self.memory.pin(job.pinned)
            job.prefilled = len(job.pinned) * cache.hash_tokens
            record = job.record
            record.cached_tokens = job.prefilled
            if job.pair is None and record.distortion_start == 0:  # blocks may have arrived here lossy
                lossy = cache.distortion(job.pinned) * job.prefilled / job.request.isl
                record.distortion_start = record.distortion_final = record.distortion_token_weighted = lossy

    def blocks_to_begin(self, job: Job) -> int:
        """Beside the prefix that it shares."""
        if job.pair is None:
            self.promise_again(job)
            return job.decode_blocks
        job.prefill_blocks = self.memory.blocks_for(job.request.isl) - self.pinned_blocks(job)
        return job.prefill_blocks

    def make_way(self, job: Job) -> None:
        """Another prompt has come before the one that waits for memory."""
        if self.memory.give_up(self.granted):
            self.blocked = None
        else:  # granted at this very moment: what it has, nobody else can wait for
            self.granted.cancel()
            self.grant()
            self.prompts.remove(job)
            self.prompts.appendleft(job)

    def admit_prompt(self, job: Job) -> None:
        job.reserved = True
        if job.pair is None:
            self.locals += 1
            job.reserved_s = self.clock.now
            self.expect(job)

    def unblock(self, _: Event) -> None:
        self.grant()
        self.attend()

    def grant(self) -> None:
        job, self.blocked = self.blocked, None
        assert job is not None
        had = self.blocks_to_begin(job)
        self.take_prefix(job)
        self.memory.release(had - self.blocks_to_begin(job))
        self.admit_prompt(job)
        self.mark()

    def begin_chunk(self) -> None:
        """How long it takes: each part as a pass of its own, but with one overhead, the larger of prompts' and decoding's."""
        now_s, base_s = self.clock.now, self.costs.prefill_s(0)
        total_s, encode_s = -base_s * (len(self.chunk) - 1), 0.0
        for job, tokens in self.chunk:
            if job.prefill_start_s != job.prefill_start_s:  # nan: it has not begun
                job.prefill_start_s = now_s
            total_s += self.prefill_s(job.prefilled + tokens, job.prefilled)
            if job.prefilled + tokens == job.tokens:
                encode_s += job.encode_s
        if self.batch.heap:
            total_s -= min(base_s, self.pace.overhead_s)
        self.chunk_s, self.stretched_s = total_s * self.batch.slow, 0.0
        self.busy_until_s = now_s + self.chunk_s + self.batch.leap_s(self.leap) + encode_s
        self.mark()
        if len(self.chunk) == 1 and job.pair is not None and job.left and job.prefilled + tokens == job.tokens:
            job.pair.begin(job, self.batch.leap_s(self.leap) + self.chunk_s)

    def end_chunk(self, seconds: float) -> None:
        """The iteration is done, and took so long. Prompts pay for what they added to it, by the time each would take alone."""
        alone_s = [self.prefill_s(job.prefilled + tokens, job.prefilled) for job, tokens in self.chunk]
        price = (self.chunk_s - self.stretched_s) / total_s * self.usd_per_s if (total_s := sum(alone_s)) > 0 else 0.0
        for (job, tokens), part_s in zip(self.chunk, alone_s):
            record = job.record
            record.cost_usd += part_s * price
            record.prefill_busy_s += seconds - self.stretched_s
            job.prefilled += tokens
            if job.prefilled == job.tokens:
                self.prefilled.append(job)
        self.chunk.clear()
        self.chunk_s = self.stretched_s = 0.0

    def encode(self, job: Job) -> float:
        """The first token is known; the bitrate policy says what becomes of the KV. Returns when it is encoded."""
        now_s, request, record = self.clock.now, job.request, job.record
        if job.gone:
            return now_s
        self.keep_prefix(job)
        self.busy_until_s = now_s + sum(other.encode_s for other in self.prefilled)
        if record.prefill_token_s != record.prefill_token_s:  # nan: not one that begins again
            job.encode_start_s = record.prefill_token_s = now_s
            record.extrapolated |= not self.costs.prefill_measured(request.isl)
        if job.pair is None or request.osl == 1:
            self.mark()
            return now_s
        if job.pipeline is None:
            job.pair.choose(job)
            encode_s = self.costs.encode_s(job.sent_tokens, job.decision) * self.batch.slow
        else:
            encode_s = job.pipeline.left_to_encode_s()
        record.encode_busy_s += encode_s
        record.extrapolated |= not self.costs.codec_measured(job.sent_tokens)
        record.cost_usd += encode_s * self.usd_per_s
        self.encode_token_s = record.encode_busy_s / request.isl
        self.busy_until_s += encode_s
        self.mark()
        return now_s + encode_s

    def hand_over(self, job: Job) -> None:
        """To the sender, to the batch, or out with its only token."""
        now_s = self.clock.now
        if job.gone:
            self.locals -= job.pair is None
            self.let_go(job)
        elif job.pair is not None and job.left:
            job.wire_start_s = now_s
            job.pair.target.expect(job)
            if job.pipeline is None:
                job.pair.send(job)
            else:
                job.pipeline.finish()
        elif job.left:
            self.locals -= 1
            if job.decode_start_s != job.decode_start_s:  # nan: not one that begins again
                job.wire_start_s = job.expand_start_s = job.decode_start_s = now_s
            self.join([job])
        else:
            record = job.record
            if record.decode_token_s != record.decode_token_s:
                record.decode_token_s = now_s
            if job.decode_start_s != job.decode_start_s:
                job.wire_start_s = job.expand_start_s = job.decode_start_s = now_s
            record.finish_s = now_s
            if job.pair is None:
                self.locals -= 1
                self.finish(job)
            else:
                self.release_prompt(job)
                self.done(job)

    def release_prompt(self, job: Job) -> None:
        """Its KV has been sent and acknowledged, or is wanted no more."""
        self.memory.release(job.prefill_blocks)
        job.prefill_blocks = 0
        self.release_prefix(job)
        if self.role != "prefill":
            self.freed()
            if not self.role:
                self.check_drained()

    def forget(self, job: Job) -> None:
        """It is given up. What the engine is at now it finishes, and lets it go then."""
        job.gone = True
        if job not in self.prompts:
            return
        self.prompts.remove(job)
        self.waiting_s = self.waiting_s - job.promised_s if self.prompts else 0.0
        if self.blocked is job:
            self.blocked = None
            if self.memory.give_up(self.granted):
                job.prefill_blocks = 0
            else:  # granted at this very moment
                self.granted.cancel()
                job.reserved_s = self.clock.now if job.pair is None else job.reserved_s
        elif not job.reserved:
            job.prefill_blocks = 0
        else:
            self.locals -= job.pair is None
        self.let_go(job)
        self.mark()
        if self.prompts:
            self.attend()  # the next one may have all it needs

    def let_go(self, job: Job) -> None:
        """Its memory, here and where it was to be decoded."""
        if job.pair is None:
            self.quit(job)
        else:
            if job.chosen:
                job.pair.forget(job)
            self.release_prompt(job)
            job.pair.target.quit(job)

    def keep_prefix(self, job: Job) -> None:
        """The prompt is computed: whole blocks of it go to the cache, no better than the prefix they were computed on."""
        cache = self.memory.cache
        if cache is None or not job.request.hash_ids:
            return
        hash_ids = cache.whole(job.request.hash_ids, job.request.isl)
        freed = self.memory.share(hash_ids, len(job.pinned), cache.worst(job.pinned))
        job.pinned = hash_ids
        if job.pair is None:
            self.account(0, -freed)
            job.decode_blocks -= freed
        else:
            job.prefill_blocks -= freed

    def release_prefix(self, job: Job) -> None:
        if job.pinned:
            self.memory.unpin(job.pinned)
            job.pinned = ()
            job.prefilled = 0
