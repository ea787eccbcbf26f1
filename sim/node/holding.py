"""What a node holds for those who decode on it, or will: memory that is promised, reserved, shared with its prefix cache, let go.

Memory is promised when a request is placed, and reserved before its KV is sent. What is in the prefix cache of its prompt need not be sent
and is used by all who need it; what has arrived goes there.

Not modelled: what refinement makes of cached blocks, and of what was here before.
"""

from __future__ import annotations

from typing import Any

from sim.node.gpu import Gpu
from sim.node.job import Job


class Holding(Gpu):
    """active, kv_used: requests placed here and not finished, and their memory, promised or taken. kv_due: of those whose prompt is
    computed."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.active = 0
        self.promised_blocks = 0
        self.due_blocks = 0
        self.kv_used = 0.0

    def promise(self, job: Job) -> None:
        """It will decode here."""
        job.decode_blocks = self.blocks_to_decode(job)
        job.promised = True
        self.account(1, job.decode_blocks)

    def hold_prefix(self, job: Job) -> None:
        """What is here of its prompt need not be sent, if the rest finds room now. The job is the next that its sender sends: nobody is to
        hold what others wait for, and wait himself."""
        memory, cache, request = self.memory, self.memory.cache, job.request
        if cache is None or job.reserved_s == job.reserved_s:
            return
        hash_ids = cache.whole(request.hash_ids, request.isl - 1)
        job.decode_pinned = hash_ids[: cache.match(hash_ids, self.engine.reuse_distortion)]
        memory.pin(job.decode_pinned)
        self.promise_again(job)
        if job.decode_pinned and memory.can_reserve(job.decode_blocks):
            memory.reserve(job.decode_blocks)
            job.reserved_s = self.clock.now
            job.held_tokens = len(job.decode_pinned) * cache.hash_tokens
            job.held_distortion = cache.distortion(job.decode_pinned)
        else:
            self.unpin(job)
            self.promise_again(job)

    def keep_arrived(self, job: Job) -> None:
        """What has arrived of its prompt goes to the cache, as good as it came."""
        memory, cache, record, isl = self.memory, self.memory.cache, job.record, job.request.isl
        assert cache is not None
        sent = record.distortion_start
        hash_ids = cache.whole(job.request.hash_ids, isl)
        freed = memory.share(hash_ids, len(job.decode_pinned), sent)
        job.decode_pinned = hash_ids
        job.decode_blocks -= freed
        self.account(0, -freed)
        whole = (job.held_tokens * job.held_distortion + (isl - job.held_tokens) * sent) / isl
        record.distortion_start = record.distortion_final = record.distortion_token_weighted = whole

    def promise_again(self, job: Job) -> None:
        """What it needs is another now."""
        blocks = self.blocks_to_decode(job)
        self.account(0, blocks - job.decode_blocks)
        job.decode_blocks = blocks

    def blocks_to_decode(self, job: Job) -> int:
        tokens, grow = job.tokens + job.left + 1, self.engine.grow_tokens
        if grow:
            tokens = min(tokens, job.tokens + grow)
        return self.memory.blocks_for(tokens) - self.pinned_blocks(job)

    def pinned_blocks(self, job: Job) -> int:
        """Blocks of this node's prefix cache that the job uses."""
        cache = self.memory.cache
        if cache is None:
            return 0
        return len(job.pinned if job.pair is None or job.pair.source is self else job.decode_pinned) * cache.blocks_each

    def account(self, requests: int, blocks: int) -> None:
        self.active += requests
        self.promised_blocks += blocks
        self.kv_used = self.promised_blocks / self.memory.blocks
        self.mark()

    @property
    def kv_due(self) -> float:
        return self.due_blocks / self.memory.blocks

    def expect(self, job: Job) -> None:
        """Its prompt is computed, or has all its memory here: from now on it is decoding's."""
        job.due_blocks = job.decode_blocks
        self.due_blocks += job.due_blocks

    def unpin(self, job: Job) -> None:
        """It uses nothing of this node's prefix cache any more."""
        if job.pair is None:
            self.release_prefix(job)
        elif job.decode_pinned:
            self.memory.unpin(job.decode_pinned)
            job.decode_pinned = ()

    def release_prefix(self, job: Job) -> None:
        """Of its prompt's side."""
        raise NotImplementedError
