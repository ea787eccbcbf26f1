"""A node's prefix cache: which blocks of prompts it holds, by the trace's hashes, and which it evicts first.

A hash stands for hash_tokens tokens and for all tokens before them, as in Mooncake's traces, so a flat table is a tree. Each block counts
the requests that use it. Unused blocks are evicted, the least recently used first, and those of one prompt from its end, so the cache
always holds a beginning of a prompt. A block that arrived lossy keeps its distortion until an exact copy replaces it.

Source: Mooncake (FAST'25), section 4; vLLM's automatic prefix caching.
Not modelled: prefixes of answers, caches in host memory or on disk, copies of prefixes between nodes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class PrefixCache:
    """blocks_each: memory blocks that one hash stands for. holders: hash -> the nodes that hold it, this node (`owner`) among them."""

    __slots__ = ("_held", "_idle", "blocks_each", "hash_tokens", "holders", "owner")

    def __init__(self, hash_tokens: int, block_tokens: int, holders: dict[int, dict[Any, None]]) -> None:
        if hash_tokens % block_tokens:
            raise ValueError(f"hash_tokens is {hash_tokens}; it must be a multiple of the block of {block_tokens} tokens")
        self.hash_tokens = hash_tokens
        self.blocks_each = hash_tokens // block_tokens
        self.holders = holders
        self.owner: Any = None
        self._held: dict[int, list[float]] = {}  # hash -> [users, distortion]
        self._idle: OrderedDict[int, None] = OrderedDict()  # without users, the least recently used first

    def __len__(self) -> int:
        return len(self._held)

    def full_blocks(self, hash_ids: tuple[int, ...], isl: int) -> tuple[int, ...]:
        """The hashes of a prompt that stand for hash_tokens tokens each; the last one may stand for fewer."""
        return hash_ids[: isl // self.hash_tokens]

    def match(self, hash_ids: tuple[int, ...], allowed: float = 0.0) -> int:
        """How many hashes from the first on are held, with at most the allowed distortion."""
        held = self._held
        for count, block in enumerate(hash_ids):
            known = held.get(block)
            if known is None or known[1] > allowed:
                return count
        return len(hash_ids)

    def distortion(self, hash_ids: tuple[int, ...]) -> float:
        """Mean distortion of these blocks, which must be held; 0 without blocks."""
        return sum(self._held[block][1] for block in hash_ids) / len(hash_ids) if hash_ids else 0.0

    def worst(self, hash_ids: tuple[int, ...]) -> float:
        """Highest distortion of these blocks, which must be held; 0 without blocks."""
        return max((self._held[block][1] for block in hash_ids), default=0.0)

    def pin(self, hash_ids: tuple[int, ...]) -> int:
        """One more request uses them. Returns how many memory blocks were unused before."""
        woken = 0
        for block in hash_ids:
            known = self._held[block]
            if known[0] == 0:
                del self._idle[block]
                woken += 1
            known[0] += 1
        return woken * self.blocks_each

    def add(self, hash_ids: tuple[int, ...], distortion: float) -> int:
        """Blocks that were computed or have arrived, used by one request. Returns how many memory blocks were unused before."""
        new = 0
        for block in hash_ids:
            known = self._held.get(block)
            if known is None:
                self._held[block] = [1, distortion]
                self.holders.setdefault(block, {})[self.owner] = None
                new += 1
            else:
                new += self.pin((block,)) // self.blocks_each
                known[1] = min(known[1], distortion)
        return new * self.blocks_each

    def unpin(self, hash_ids: tuple[int, ...]) -> int:
        """One request less uses them. Returns how many memory blocks are unused now."""
        idle = 0
        for block in reversed(hash_ids):
            known = self._held[block]
            known[0] -= 1
            if known[0] == 0:
                self._idle[block] = None
                idle += 1
        return idle * self.blocks_each

    def shrink_to(self, blocks: int) -> None:
        """Evict unused blocks until they take no more than so many memory blocks."""
        while len(self._idle) * self.blocks_each > blocks:
            self._evict(self._idle.popitem(last=False)[0])

    def clear(self) -> None:
        """The node has lost its memory."""
        for block in list(self._held):
            self._evict(block)
        self._idle.clear()

    def _evict(self, block: int) -> None:
        del self._held[block]
        holders = self.holders[block]
        del holders[self.owner]
        if not holders:
            del self.holders[block]
