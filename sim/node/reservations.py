"""KV memory that a node holds for its requests: it is promised, reserved, shared with the prefix cache, and released.

Memory to decode is promised when a request is placed, and reserved before its KV is sent. The part of a prompt that is in the node's prefix
cache need not be computed or sent; all requests with that prefix use the same blocks. KV that was computed here or has arrived here is
added to the cache.

Not modelled: a refinement that improves cached blocks, or blocks that were cached before the transfer.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.job import Job
from sim.node.gpu import Gpu


class KvReservations:
    """The memory reservations of one node.

    active: number of requests placed here to decode and not finished. kv_used: share of the memory that is promised to them or reserved for
    them. due_blocks: blocks of the requests whose prompt is computed. load_changed(): called when one of these changes. closed(job): called
    when a request has released everything that it held here.
    """

    def __init__(self, gpu: Gpu, load_changed: Callable[[], None], closed: Callable[[Job], None]) -> None:
        self.clock, self.memory, self.engine = gpu.clock, gpu.memory, gpu.engine
        self.load_changed, self.closed = load_changed, closed
        self.active = 0
        self.promised_blocks = 0
        self.due_blocks = 0
        self.kv_used = 0.0

    @property
    def kv_due(self) -> float:
        return self.due_blocks / self.memory.blocks

    # -- prompts that are computed here --------------------------------------------------------------------------------------------

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        cache = self.memory.cache
        if cache is None:
            return 0
        held = cache.match(hash_ids, self.engine.reuse_distortion)
        return (held + cache.match_host(hash_ids, held, self.engine.reuse_distortion)) * cache.hash_tokens

    def pin_prompt(self, job: Job) -> None:
        """Use the cached part of the prompt, which then need not be computed. At least one token is computed."""
        cache = self.memory.cache
        if cache is not None and job.request.hash_ids:
            stage, isl = job.prompt, job.request.isl
            hash_ids = cache.full_blocks(job.request.hash_ids, isl - 1)
            stage.prefix = hash_ids[: cache.match(hash_ids, self.engine.reuse_distortion)]
            self.memory.pin(stage.prefix)
            stage.computed_tokens = stage.cached_tokens = len(stage.prefix) * cache.hash_tokens
            if job.pair is None and job.distortion_start == 0:  # cached blocks that arrived over a link may have distortion
                job.set_distortion(cache.distortion(stage.prefix) * stage.computed_tokens / isl)
            if cache.host_hashes:
                self.restore(job, hash_ids)

    def restore(self, job: Job, hash_ids: tuple[int, ...]) -> None:
        """Copy what follows of the prompt from the host tier, into memory that is reserved as for tokens that are computed."""
        cache, stage = self.memory.cache, job.prompt
        assert cache is not None
        first = len(stage.prefix)
        restored = hash_ids[first : first + cache.match_host(hash_ids, first, self.engine.reuse_distortion)]
        stage.restored_tokens = len(restored) * cache.hash_tokens
        stage.computed_tokens = stage.cached_tokens = stage.computed_tokens + stage.restored_tokens
        stage.restored_distortion = cache.take_from_host(restored)

    def blocks_to_prefill(self, job: Job) -> int:
        """Number of blocks that the prompt needs besides its cached prefix."""
        if job.pair is None:
            self.promise_again(job)
            return job.reservation.blocks
        cache = self.memory.cache
        cached = len(job.prompt.prefix) * cache.blocks_each if cache is not None else 0
        job.prompt.blocks = self.memory.blocks_for(job.request.isl) - cached
        return job.prompt.blocks

    def cache_computed(self, job: Job) -> None:
        """Add whole blocks of the prompt to the cache. Their distortion is at least that of the prefix from which they were computed."""
        cache = self.memory.cache
        if cache is None or not job.request.hash_ids:
            return
        hash_ids = cache.full_blocks(job.request.hash_ids, job.request.isl)
        worst = max(cache.worst(job.prompt.prefix), job.prompt.restored_distortion)
        freed = self.memory.share(hash_ids, len(job.prompt.prefix), worst)
        job.prompt.prefix = hash_ids
        if job.pair is None:
            self.count(0, -freed)
            job.reservation.blocks -= freed
        else:
            job.prompt.blocks -= freed

    def unpin_prompt(self, job: Job) -> None:
        """Stop using cached blocks for the prompt."""
        if job.prompt.restored_tokens:
            job.prompt.restored_tokens, job.prompt.computed_tokens = 0, 0
        if job.prompt.prefix:
            self.memory.unpin(job.prompt.prefix)
            job.prompt.prefix = ()
            job.prompt.computed_tokens = 0

    # -- before the request decodes ----------------------------------------------------------------------------------------------

    def promise(self, job: Job) -> None:
        """Promise memory to a request that is placed here to decode."""
        job.reservation.blocks = self.blocks_to_decode(job)
        job.reservation.active = True
        self.count(1, job.reservation.blocks)

    def promise_again(self, job: Job) -> None:
        """Update the promise: the number of blocks that the request needs has changed."""
        blocks = self.blocks_to_decode(job)
        self.count(0, blocks - job.reservation.blocks)
        job.reservation.blocks = blocks

    def reserve(self, job: Job) -> None:
        """Take the promised blocks now. The caller has checked that they are free."""
        self.memory.reserve(job.reservation.blocks)
        self.hold(job)

    def hold(self, job: Job) -> None:
        """Note that the promised blocks are reserved."""
        job.reservation.reserved, job.reservation.reserved_s = True, self.clock.now

    def expect(self, job: Job) -> None:
        """Count the request's blocks as due from now on: its prompt is computed, or has all its memory on this node."""
        job.reservation.due_blocks = job.reservation.blocks
        self.due_blocks += job.reservation.due_blocks

    def hold_prefix(self, job: Job) -> None:
        """Use the cached part of the prompt, so that it is not sent, if there is memory for the rest now.

        Called only for the job that the sender sends next: a request must not hold memory while it waits for memory that others hold.
        """
        memory, cache, reservation = self.memory, self.memory.cache, job.reservation
        if cache is None or reservation.reserved:
            return
        hash_ids = cache.full_blocks(job.request.hash_ids, job.request.isl - 1)
        reservation.prefix = hash_ids[: cache.match(hash_ids, self.engine.reuse_distortion)]
        memory.pin(reservation.prefix)
        self.promise_again(job)
        if reservation.prefix and memory.can_reserve(reservation.blocks):
            self.reserve(job)
            reservation.held_tokens = len(reservation.prefix) * cache.hash_tokens
            reservation.held_distortion = cache.distortion(reservation.prefix)
        else:
            self.unpin(job)
            self.promise_again(job)

    def cache_arrived(self, job: Job) -> None:
        """Add the prompt's KV to the cache with the distortion it arrived with."""
        memory, cache, reservation, isl = self.memory, self.memory.cache, job.reservation, job.request.isl
        assert cache is not None
        sent = job.distortion_start
        hash_ids = cache.full_blocks(job.request.hash_ids, isl)
        freed = memory.share(hash_ids, len(reservation.prefix), sent)
        reservation.prefix = hash_ids
        reservation.blocks -= freed
        self.count(0, -freed)
        held_tokens = reservation.held_tokens
        job.set_distortion((held_tokens * reservation.held_distortion + (isl - held_tokens) * sent) / isl)

    # -- while it decodes, and after ---------------------------------------------------------------------------------------------

    def grow(self, job: Job, blocks: int) -> None:
        """Give more blocks to a request that decodes. The caller has checked that they are free."""
        self.memory.grow(blocks)
        job.reservation.blocks += blocks
        job.reservation.due_blocks += blocks
        self.due_blocks += blocks
        self.count(0, blocks)

    def give_back(self, job: Job) -> None:
        """Take the request's blocks back; it stays placed here."""
        self.memory.release(job.reservation.blocks)
        job.reservation.reserved = False
        self.due_blocks, job.reservation.due_blocks = self.due_blocks - job.reservation.due_blocks, 0
        self.unpin(job)

    def close(self, job: Job) -> None:
        """Release everything that the request holds here, because it has ended here or will not decode here."""
        reservation = job.reservation
        if not reservation.active:
            return
        reservation.active = False
        if job.transfer.refinement is not None:
            job.transfer.refinement.end()
        if reservation.reserved:
            self.memory.release(reservation.blocks)
        self.unpin(job)
        self.due_blocks, reservation.due_blocks = self.due_blocks - reservation.due_blocks, 0
        self.count(-1, -reservation.blocks)
        self.closed(job)

    # -- counts ------------------------------------------------------------------------------------------------------------------

    def blocks_to_decode(self, job: Job) -> int:
        tokens, grow = job.prompt_tokens + job.decode_iterations + 1, self.engine.grow_tokens
        if grow:
            tokens = min(tokens, job.prompt_tokens + grow)
        return self.memory.blocks_for(tokens) - self.pinned_blocks(job)

    def pinned_blocks(self, job: Job) -> int:
        """Number of blocks of this node's prefix cache that the job uses to decode."""
        cache = self.memory.cache
        if cache is None:
            return 0
        return len(job.prompt.prefix if job.pair is None else job.reservation.prefix) * cache.blocks_each

    def held_tokens(self, job: Job) -> int:
        """Number of tokens that fit in all blocks that the job uses to decode."""
        return (job.reservation.blocks + self.pinned_blocks(job)) * self.memory.block_tokens

    def count(self, requests: int, blocks: int) -> None:
        self.active += requests
        self.promised_blocks += blocks
        self.kv_used = self.promised_blocks / self.memory.blocks
        self.load_changed()

    def unpin(self, job: Job) -> None:
        """Stop using blocks of this node's prefix cache for the job."""
        if job.pair is None:
            self.unpin_prompt(job)
        elif job.reservation.prefix:
            self.memory.unpin(job.reservation.prefix)
            job.reservation.prefix = ()
