"""An allocator of blocks that prefers adjacent ones, so that a sequence has few runs and its transfer needs few calls.

Source: FlowKV (arXiv 2504.03775), section 3.3, with best fit and merging on free.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class Segments:
    """The free blocks of a pool, kept as segments of adjacent blocks that are as long as possible.

    Parameters
    ----------
    blocks : how many blocks the pool has, at least 1; all are free in the beginning.

    Source: FlowKV (arXiv 2504.03775), section 3.3, with best fit, and merging of neighbouring segments on free.
    """

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a pool of {blocks} blocks: at least 1 is needed")
        self.blocks = blocks
        self.free_blocks = blocks
        self._free = [True] * blocks
        self._length = {0: blocks}  # first block of a free segment -> its length
        self._first = {blocks: 0}  # the block after a free segment -> its first block
        self._by_length = [(blocks, 0)]  # sorted, so that best fit is one bisection

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Free segments as (first block, blocks), in block order."""
        return sorted(self._length.items())

    def can_allocate(self, blocks: int) -> bool:
        return 0 <= blocks <= self.free_blocks

    def allocate(self, blocks: int) -> list[int]:
        """A table of `blocks` blocks, from the shortest free segment that is long enough, or else from as few segments as possible.

        Raises ValueError if fewer blocks are free; ask `can_allocate` first.
        """
        if not self.can_allocate(blocks):
            raise ValueError(f"{blocks} blocks are requested, {self.free_blocks} of {self.blocks} are free")
        table: list[int] = []
        while len(table) < blocks:
            wanted = blocks - len(table)
            place = bisect_left(self._by_length, (wanted, 0))
            length, first = self._by_length[min(place, len(self._by_length) - 1)]  # the longest one, if none is long enough
            taken = min(wanted, length)
            self._remove(first, length)
            if taken < length:
                self._add(first + taken, length - taken)
            table.extend(range(first, first + taken))
        for block in table:
            self._free[block] = False
        self.free_blocks -= blocks
        return table

    def free(self, table: list[int]) -> None:
        """Free the blocks of a table. Raises ValueError, and frees nothing, for a block that is unknown, already free or named twice."""
        for block in table:
            if not 0 <= block < self.blocks:
                raise ValueError(f"block {block} is not in a pool of {self.blocks}")
            if self._free[block]:
                raise ValueError(f"block {block} is already free")
        if len(set(table)) != len(table):
            raise ValueError("a table names a block twice; nothing was freed")
        for block in table:
            self._free[block] = True
        self.free_blocks += len(table)
        ordered = sorted(table)
        start = 0
        for i in range(1, len(ordered) + 1):
            if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
                self._merge(ordered[start], i - start)
                start = i

    def _merge(self, first: int, length: int) -> None:
        before = self._first.get(first)
        if before is not None:
            grown = self._length[before]
            self._remove(before, grown)
            first, length = before, length + grown
        after = self._length.get(first + length)
        if after is not None:
            self._remove(first + length, after)
            length += after
        self._add(first, length)

    def _add(self, first: int, length: int) -> None:
        self._length[first] = length
        self._first[first + length] = first
        insort(self._by_length, (length, first))

    def _remove(self, first: int, length: int) -> None:
        del self._length[first]
        del self._first[first + length]
        self._by_length.pop(bisect_left(self._by_length, (length, first)))
