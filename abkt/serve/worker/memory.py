"""The memory of a decode worker: the blocks of each accepted transfer, and the received codes of transfers that are not raw."""

from __future__ import annotations

import threading

from abkt.kv.segments import Segments
from abkt.serve.worker.refining import CodeMemory
from abkt.spec import KVLayout
from abkt.transfer.protocol.messages import Offer


class DecodeMemory:
    """Reserves and frees a decode worker's memory. Thread-safe: receiver threads reserve, the main loop frees.

    codes: the memory of codes, which are held outside the pool; they may take as many bytes as the pool.
    """

    def __init__(self, layout: KVLayout, segments: Segments) -> None:
        self.codes = CodeMemory(layout.blocks * layout.block_bytes)
        self._layout, self._segments = layout, segments
        self._lock = threading.Lock()
        self._tables: dict[int, list[int]] = {}  # by attempt id, from the offer to the last token
        self._cancelled: set[int] = set()  # attempts that must not be accepted any more

    def reserve(self, offer: Offer, tokens: int) -> list[int] | None:
        """Reserve blocks for `tokens` tokens, prompt and output; None if memory is short. Raises ValueError for an offer that must not be
        accepted."""
        number, blocks = offer.request_id, self._layout.blocks_for(tokens)
        with self._lock:
            if number in self._tables or number in self._cancelled:
                raise ValueError(f"request {number} is here already, or was cancelled")
            if not self._segments.can_allocate(blocks):
                return None
            if offer.mode != "raw" and not self.codes.hold(number, offer.size):
                return None
            table = self._tables[number] = self._segments.allocate(blocks)
            return table

    def table(self, attempt_id: int) -> list[int]:
        return self._tables[attempt_id]

    def cancel(self, attempt_id: int) -> bool:
        """Accept no transfer of this attempt from now on; returns whether it holds blocks."""
        with self._lock:
            self._cancelled.add(attempt_id)
            return attempt_id in self._tables

    def cancelled(self, attempt_id: int) -> bool:
        return attempt_id in self._cancelled

    def release(self, attempt_id: int) -> bool:
        """Free the attempt's blocks; returns whether it was cancelled."""
        with self._lock:
            self._segments.free(self._tables.pop(attempt_id))
            return attempt_id in self._cancelled

    @property
    def attempts(self) -> list[int]:
        """The attempts that hold blocks."""
        with self._lock:
            return list(self._tables)
