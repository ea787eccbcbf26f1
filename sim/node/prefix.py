"""A node's prefix cache: the blocks of prompts that it holds, by the trace's hashes, and the order of their eviction.

A hash stands for hash_tokens tokens and all tokens before them, as in Mooncake's traces, so a flat table can represent a prefix tree. Each
block counts the requests that use it. Unused blocks are evicted, the least recently used first. Blocks of one prompt are evicted from its
end, so that the rest is still a prefix. A block that arrived lossy keeps its distortion until a lossless copy replaces it.

A host tier holds blocks that were evicted, the least recently used last, until they are used again. A block that is copied back to the GPU
stays in the tier too.

Source: Mooncake (FAST'25), section 4; vLLM's automatic prefix caching and its offloading to host memory.
Not modelled: prefixes of answers, caches on disk, copies of prefixes between nodes, the copy to the host (it runs beside the passes).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class PrefixCache:
    """One node's prefix cache.

    blocks_each: memory blocks that one hash stands for. holders: hash -> all nodes that hold it; shared by the caches of all nodes.
    owner: the node of this cache. host_hashes: hashes that the host tier holds at most.
    """

    __slots__ = ("_held", "_host", "_idle", "blocks_each", "hash_tokens", "holders", "host_hashes", "owner")

    def __init__(self, hash_tokens: int, block_tokens: int, holders: dict[int, dict[Any, None]], host_tokens: int = 0) -> None:
        if hash_tokens % block_tokens:
            raise ValueError(f"hash_tokens is {hash_tokens}; it must be a multiple of the block of {block_tokens} tokens")
        self.hash_tokens = hash_tokens
        self.blocks_each = hash_tokens // block_tokens
        self.holders = holders
        self.owner: Any = None
        self._held: dict[int, list[float]] = {}  # hash -> [users, distortion]
        self.host_hashes = host_tokens // hash_tokens
        self._host: OrderedDict[int, float] = OrderedDict()  # hash -> distortion, the least recently used first
        self._idle: OrderedDict[int, None] = OrderedDict()  # blocks without users, the least recently used first

    def __len__(self) -> int:
        return len(self._held)

    def full_blocks(self, hash_ids: tuple[int, ...], isl: int) -> tuple[int, ...]:
        """The hashes of a prompt's first isl tokens, without a last hash that stands for fewer than hash_tokens tokens."""
        return hash_ids[: isl // self.hash_tokens]

    def match(self, hash_ids: tuple[int, ...], allowed: float = 0.0) -> int:
        """Number of hashes, from the first on, that are held with at most the allowed distortion."""
        held = self._held
        for count, block in enumerate(hash_ids):
            known = held.get(block)
            if known is None or known[1] > allowed:
                return count
        return len(hash_ids)

    def match_host(self, hash_ids: tuple[int, ...], first: int, allowed: float = 0.0) -> int:
        """Number of hashes, from the one at `first` on, that the host tier holds with at most the allowed distortion."""
        host = self._host
        for count, block in enumerate(hash_ids[first:]):
            if host.get(block, 2.0 + allowed) > allowed:
                return count
        return len(hash_ids) - first

    def take_from_host(self, hash_ids: tuple[int, ...]) -> float:
        """Note that these blocks of the host tier are copied to the GPU. Returns their highest distortion."""
        for block in hash_ids:
            self._host.move_to_end(block)
        return max((self._host[block] for block in hash_ids), default=0.0)

    def distortion(self, hash_ids: tuple[int, ...]) -> float:
        """Mean distortion of these blocks, which must be held; 0 without blocks."""
        return sum(self._held[block][1] for block in hash_ids) / len(hash_ids) if hash_ids else 0.0

    def worst(self, hash_ids: tuple[int, ...]) -> float:
        """Highest distortion of these blocks, which must be held; 0 without blocks."""
        return max((self._held[block][1] for block in hash_ids), default=0.0)

    def pin(self, hash_ids: tuple[int, ...]) -> int:
        """One more request uses these blocks. Returns how many memory blocks were unused before."""
        woken = 0
        for block in hash_ids:
            known = self._held[block]
            if known[0] == 0:
                del self._idle[block]
                woken += 1
            known[0] += 1
        return woken * self.blocks_each

    def add(self, hash_ids: tuple[int, ...], distortion: float) -> int:
        """Add blocks that were computed or have arrived; one request uses them. Returns how many memory blocks were unused before."""
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
        """One request fewer uses these blocks. Returns how many memory blocks are unused now."""
        idle = 0
        for block in reversed(hash_ids):
            known = self._held[block]
            known[0] -= 1
            if known[0] == 0:
                self._idle[block] = None
                idle += 1
        return idle * self.blocks_each

    def shrink_to(self, blocks: int) -> None:
        """Evict unused blocks until the remaining unused ones take at most this many memory blocks."""
        while len(self._idle) * self.blocks_each > blocks:
            block = self._idle.popitem(last=False)[0]
            if self.host_hashes:
                self._host[block] = self._held[block][1]
                self._host.move_to_end(block)
                if len(self._host) > self.host_hashes:
                    self._host.popitem(last=False)
            self._evict(block)

    def clear(self) -> None:
        """Drop all blocks, because the node has lost its memory."""
        for block in list(self._held):
            self._evict(block)
        self._idle.clear()
        self._host.clear()

    def _evict(self, block: int) -> None:
        del self._held[block]
        holders = self.holders[block]
        del holders[self.owner]
        if not holders:
            del self.holders[block]
