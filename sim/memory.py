"""KV memory of a node, counted in blocks: reserved before it is used, waited for in order of arrival.

Not modelled: where blocks lie (fragmentation), prefix sharing, eviction.
"""

from __future__ import annotations

from collections import deque

from sim.clock import Wake


class Memory:
    """`if can_reserve: reserve, else: yield waited_for`. Whoever comes later waits behind, also with less to ask for."""

    __slots__ = ("_waiting", "block_tokens", "blocks", "used")

    def __init__(self, tokens: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.blocks = tokens // block_tokens
        self.used = 0
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

    def reserve(self, blocks: int) -> None:
        self.used += blocks

    def waited_for(self, blocks: int, wake: Wake) -> Wake:
        """Rings `wake` once the blocks are reserved for it."""
        self._waiting.append((blocks, wake))
        return wake

    def release(self, blocks: int) -> None:
        self.used -= blocks
        while self._waiting and self.used + self._waiting[0][0] <= self.blocks:
            granted, wake = self._waiting.popleft()
            self.used += granted
            wake.after(0.0)
