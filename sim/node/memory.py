"""KV memory of a node, counted in blocks: reserved before it is used, waited for in order of arrival.

Blocks that a prefix cache holds and nobody uses are free to be taken: the cache gives them up.

Not modelled: where blocks lie (fragmentation).
"""

from __future__ import annotations

from collections import deque

from sim.clock import Wake
from sim.node.prefix import PrefixCache


class KvMemory:
    """`if can_reserve: reserve, else: yield waited_for`. Whoever comes later waits behind, also with less to ask for.

    used: blocks that somebody needs. `grow` and `can_grow` are for those who already work on what they hold, and wait for nobody.
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

    grow = reserve

    def waited_for(self, blocks: int, wake: Wake) -> Wake:
        """Rings `wake` once the blocks are reserved for it."""
        self._waiting.append((blocks, wake))
        return wake

    def waits(self, wake: Wake) -> bool:
        return any(waiting is wake for _, waiting in self._waiting)

    def give_up(self, wake: Wake) -> bool:
        """Whoever waits by `wake` no longer does. False if it did not wait; blocks that were granted are the caller's to release."""
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
        """Blocks of the cache, all of them held, are in use by one more."""
        assert self.cache is not None
        self.used += self.cache.pin(hash_ids)

    def unpin(self, hash_ids: tuple[int, ...]) -> None:
        assert self.cache is not None
        self.release(self.cache.unpin(hash_ids))

    def share(self, hash_ids: tuple[int, ...], pinned: int, distortion: float) -> int:
        """The cache takes over the blocks of a prefix whose first `pinned` ids were its own already; all of them stay in use.

        Returns the blocks that whoever computed them no longer has to release.
        """
        assert self.cache is not None
        new = hash_ids[pinned:]
        self.release(len(new) * self.cache.blocks_each - self.cache.add(new, distortion))  # what somebody else had put there meanwhile
        return len(new) * self.cache.blocks_each

    def _grant(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.blocks:
            granted, wake = self._waiting.popleft()
            self.reserve(granted)
            wake.after(0.0)
