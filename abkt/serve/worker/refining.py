"""Better values for a request that is decoded already: how good its KV is at each token, and the memory of the codes they come from.

The codes that have come stay until nothing follows them; a longer prefix of them is expanded over the prompt's blocks between two
iterations, never within one. Only the prompt's tokens are written: what was decoded since lies behind them, in the last block too.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from abkt.transfer.receive.received import Received


@dataclass(slots=True)
class Quality:
    """Of the KV that a running request reads. received: where better values may come from; None: they do not. cut, distortion: of what is
    in the pool now. swaps: (when, decoded tokens before, cut). refine_bytes, refine_end_s: of what came behind, once that is over."""

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
        """Whether there are better values than those in the pool."""
        return self.received is not None and self.received.cut > self.cut

    @property
    def token_weighted(self) -> float:
        """Mean over the tokens decoded so far, each at what was there; before the first, what is there."""
        return self._sum / self.tokens if self.tokens else self.distortion

    def decoded(self) -> None:
        self.tokens += 1
        self._sum += self.distortion

    def swapped(self, now_s: float, cut: int, distortion: float) -> None:
        self.cut, self.distortion = cut, distortion
        self.swaps.append((now_s, self.tokens, cut))

    def settle(self) -> None:
        """Nothing follows any more; the codes are let go."""
        if received := self.received:
            self.refine_bytes, self.received = received.refine_bytes, None
            self.refine_end_s = received.last_byte_s if self.refine_bytes else math.nan

    def close(self) -> None:
        """No token is left for which better values would count."""
        if self.received is not None:
            self.received.decline()
        self.settle()


class Codes:
    """Who holds how many bytes of codes, and whose may go first. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        self._kept: dict[int, Received] = {}  # decoded already, kept for better values; the oldest first

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return sum(self._held.values())

    def hold(self, number: int, size_bytes: int) -> bool:
        """Whether there is room; one alone always has it. Where there is none, as many as need to are told to end their refinement: ask
        again then."""
        with self._lock:
            short = sum(self._held.values()) + size_bytes - self.capacity_bytes
            if short <= 0 or not self._held:
                self._held[number] = size_bytes
                return True
            for other, received in self._kept.items():
                if short <= 0:
                    break
                received.decline()
                short -= self._held.get(other, 0)
            return False

    def keep(self, received: Received) -> None:
        """Better values may follow, if there is memory for another one of its size beside it."""
        with self._lock:
            number = received.transfer_id
            self._kept[number] = received
            if sum(self._held.values()) + self._held.get(number, 0) > self.capacity_bytes:
                received.decline()

    def free(self, number: int) -> None:
        with self._lock:
            self._held.pop(number, None)
            self._kept.pop(number, None)
