"""Refinement: better KV values for a request that is already being decoded. Tracks its distortion per token and the memory of its codes.

Arrived codes stay in memory until no more codes can follow. Between two iterations, never during one, a longer prefix of the codes is
expanded over the prompt's blocks. Only the prompt's tokens are overwritten; tokens decoded since then come after them, also in the last
block.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from abkt.transfer.receive.received import Received


@dataclass(slots=True)
class KVQuality:
    """The distortion of the KV that a running request reads.

    received: the transfer that may bring better values; None: none will come. cut, distortion: cut and distortion of the KV in the pool
    now. start: the distortion at the first token. swaps: (time, tokens decoded before, cut) for each time better values were written.
    refine_bytes, refine_end_s: wire bytes after the start, and when the last of them arrived; set at the end.
    """

    received: Received | None
    cut: int
    distortion: float
    start: float = field(init=False)
    swaps: list[tuple[float, int, int]] = field(default_factory=list)
    tokens: int = 0
    refine_bytes: int = 0
    refine_end_s: float = math.nan
    _sum: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.distortion

    @property
    def better(self) -> bool:
        """Whether better values than those in the pool have arrived."""
        return self.received is not None and self.received.cut > self.cut

    @property
    def token_weighted(self) -> float:
        """Mean over the tokens decoded so far of the distortion they were decoded with; before the first token, the present distortion."""
        return self._sum / self.tokens if self.tokens else self.distortion

    def decoded(self) -> None:
        """Count one more decoded token."""
        self.tokens += 1
        self._sum += self.distortion

    def swapped(self, now_s: float, cut: int, distortion: float) -> None:
        """Record that better values were written into the pool."""
        self.cut, self.distortion = cut, distortion
        self.swaps.append((now_s, self.tokens, cut))

    def settle(self) -> None:
        """End the refinement: no more bytes follow, and the codes can be freed."""
        if received := self.received:
            self.refine_bytes, self.received = received.refine_bytes, None
            self.refine_end_s = received.last_byte_s if self.refine_bytes else math.nan

    def close(self) -> None:
        """End the refinement after the last token, when better values are of no use."""
        if self.received is not None:
            self.received.decline()
        self.settle()


class CodeMemory:
    """The memory of codes: the bytes that each transfer holds, and the order in which refinements end when memory is short. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}  # transfer id -> bytes
        self._kept: dict[int, Received] = {}  # transfers being decoded, kept for better values; oldest first

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return sum(self._held.values())

    def hold(self, transfer_id: int, size_bytes: int) -> bool:
        """Reserve memory; returns whether there was room. A single transfer always has room.

        If there is no room, the oldest refinements are told to end, as many as needed; call again when memory is freed.
        """
        with self._lock:
            short = sum(self._held.values()) + size_bytes - self.capacity_bytes
            if short <= 0 or not self._held:
                self._held[transfer_id] = size_bytes
                return True
            for other, received in self._kept.items():
                if short <= 0:
                    break
                received.decline()
                short -= self._held.get(other, 0)
            return False

    def keep(self, received: Received) -> None:
        """Keep the codes for later refinement, if one more transfer of this size would still fit."""
        with self._lock:
            number = received.transfer_id
            self._kept[number] = received
            if sum(self._held.values()) + self._held.get(number, 0) > self.capacity_bytes:
                received.decline()

    def free(self, transfer_id: int) -> None:
        with self._lock:
            self._held.pop(transfer_id, None)
            self._kept.pop(transfer_id, None)
