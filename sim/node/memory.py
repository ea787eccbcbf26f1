"""KV memory of a node, counted in blocks. Memory is reserved before it is used; requests that find too little wait in order of arrival.

Blocks that the prefix cache holds and no request uses can be reserved: the cache then evicts them.

Not modelled: where blocks lie (fragmentation).
"""

from __future__ import annotations

from collections import deque

from sim.node.prefix import PrefixCache
from sim.timers import Wake


class KvMemory:
    """Usage: `if can_reserve: reserve, else: yield wait_for`. A later request waits behind earlier ones, even if it needs fewer blocks.

    used: blocks that some request needs. `grow` and `can_grow` are for requests that already hold memory; these go before waiting requests.
    """

    __slots__ = ("_waiting", "block_tokens", "blocks", "cache", "used")

    def __init__(self, tokens: int, block_tokens: int, cache: PrefixCache | None = None) -> None:
        self.block_tokens = block_tokens
        self.blocks = tokens // block_tokens
        self.used = 0
        self.cache = cache
        self._waiting: deque[tuple[int, Wake]] = deque()

    def __str__(self) -> str:
        return f"{self.used} of {self.blocks} blocks taken, {len(self._waiting)} waiting for some"

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def can_reserve(self, blocks: int) -> bool:
        return not self._waiting and self.used + blocks <= self.blocks

    def can_grow(self, blocks: int) -> bool:
        return self.used + blocks <= self.blocks

    def reserve(self, blocks: int) -> None:
        self.used += blocks
        if self.cache is not None:
            self.cache.shrink_to(self.blocks - self.used)

    def grow(self, blocks: int) -> None:
        self.reserve(blocks)

    def wait_for(self, blocks: int, wake: Wake) -> Wake:
        """`wake` fires once the blocks are reserved for it."""
        self._waiting.append((blocks, wake))
        return wake

    def is_waiting(self, wake: Wake) -> bool:
        return any(waiting is wake for _, waiting in self._waiting)

    def cancel_wait(self, wake: Wake) -> bool:
        """Stop waiting. False if the blocks were already granted to `wake`; the caller then has to release them."""
        for place, (_, waiting) in enumerate(self._waiting):
            if waiting is wake:
                del self._waiting[place]
                self._grant()
                return True
        return False

    def release(self, blocks: int) -> None:
        self.used -= blocks
        if self._waiting:
            self._grant()

    def pin(self, hash_ids: tuple[int, ...]) -> None:
        """One more request uses these blocks of the cache. The cache must hold all of them."""
        assert self.cache is not None
        self.used += self.cache.pin(hash_ids)

    def unpin(self, hash_ids: tuple[int, ...]) -> None:
        assert self.cache is not None
        self.release(self.cache.unpin(hash_ids))

    def share(self, hash_ids: tuple[int, ...], pinned: int, distortion: float) -> int:
        """Move the blocks of a prefix to the cache, except for the first `pinned` ids, which it already has. All stay in use.

        Returns the number of blocks that the request no longer has to release, because the cache owns them now.
        """
        assert self.cache is not None
        new = hash_ids[pinned:]
        self.release(len(new) * self.cache.blocks_each - self.cache.add(new, distortion))  # blocks that another request added meanwhile
        return len(new) * self.cache.blocks_each

    def _grant(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.blocks:
            granted, wake = self._waiting.popleft()
            self.reserve(granted)
            wake.after(0.0)
