"""Refinement: better values for a request that is decoded already. How good its KV is at each token, and the memory of the codes.

Codes that have arrived stay in memory until nothing follows them. A longer prefix of them is expanded over the prompt's blocks between two
iterations, never during one. Only the prompt's tokens are written: those decoded since then lie behind them, in the last block too.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from abkt.transfer.receive.received import Received


@dataclass(slots=True)
class KVQuality:
    """How good the KV is that a running request reads.

    received: the transfer that better values may come from; None: none will come. cut, distortion: of what is in the pool now. start: the
    distortion at the first token. swaps: (when, tokens decoded before, cut) of each swap. refine_bytes, refine_end_s: wire bytes of what
    followed the start, and when the last of them came; set when it is over.
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
        """Mean distortion over the tokens decoded so far, each at what it was decoded from; before the first token, the present one."""
        return self._sum / self.tokens if self.tokens else self.distortion

    def decoded(self) -> None:
        """One more token was decoded."""
        self.tokens += 1
        self._sum += self.distortion

    def swapped(self, now_s: float, cut: int, distortion: float) -> None:
        """Better values are in the pool."""
        self.cut, self.distortion = cut, distortion
        self.swaps.append((now_s, self.tokens, cut))

    def settle(self) -> None:
        """Nothing follows any more; the codes can be freed."""
        if received := self.received:
            self.refine_bytes, self.received = received.refine_bytes, None
            self.refine_end_s = received.last_byte_s if self.refine_bytes else math.nan

    def close(self) -> None:
        """No token will be decoded any more, so better values are of no use."""
        if self.received is not None:
            self.received.decline()
        self.settle()


class CodeMemory:
    """The memory of codes: how many bytes each transfer holds, and whose refinement ends first when memory is short. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}  # bytes by transfer id
        self._kept: dict[int, Received] = {}  # those that are decoded already and kept for better values, the oldest first

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return sum(self._held.values())

    def hold(self, transfer_id: int, size_bytes: int) -> bool:
        """Reserve memory; returns whether there was room. A transfer that is alone always has room.

        Where there is no room, enough of the oldest refinements are told to end; ask again when memory is freed.
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
        """Keep the codes for better values that may follow, if one more transfer of this size would fit beside them."""
        with self._lock:
            number = received.transfer_id
            self._kept[number] = received
            if sum(self._held.values()) + self._held.get(number, 0) > self.capacity_bytes:
                received.decline()

    def free(self, transfer_id: int) -> None:
        with self._lock:
            self._held.pop(transfer_id, None)
            self._kept.pop(transfer_id, None)
