"""Chunk by chunk, the finest level that still meets the SLO if the link stays as it was for the last chunk.

    level = the finest whose remaining bytes / throughput <= SLO - time elapsed;  throughput = that of the last chunk

Source: CacheGen (SIGCOMM 2024), its streaming adaptation (its released experiment gives each chunk an equal share of the SLO instead of
what is left of it). There each chunk of tokens keeps the level it was sent at, and text, to be computed again, is sent where that is in
time; a stream's cut is one level for all tokens, so a better one later mends the early chunks too, and there is no text: where no level
is in time, the coarsest goes. Assumptions: the levels; chunks counted in wire bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from abkt.policy.bitrate.base import sending_s, stream
from abkt.policy.view import Decision, Delivered, GoodputSample, Refined, TransferView


@dataclass(slots=True)
class CacheGen:
    """initial_bytes_per_s: believed until the first chunk. chunk_bytes: wire bytes of a chunk. bits: the levels, finest first."""

    initial_bytes_per_s: float
    chunk_bytes: float = 1e6
    bits: Sequence[int] = (8, 4, 2)
    _throughput: float = field(default=math.nan, init=False)
    _open_bytes: float = field(default=0.0, init=False)  # of the chunk that is not complete yet
    _open_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not (self.initial_bytes_per_s > 0 and self.chunk_bytes > 0 and self.bits and list(self.bits) == sorted(self.bits, reverse=True)):
            raise ValueError("cachegen: initial_bytes_per_s and chunk_bytes must be above 0, bits one at least and falling")
        self._throughput = self.initial_bytes_per_s

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        if sample.duration_s <= 0 or sample.wire_bytes <= 0:
            return
        rate, missing = sample.wire_bytes / sample.duration_s, self.chunk_bytes - self._open_bytes
        if sample.wire_bytes < missing:
            self._open_bytes += sample.wire_bytes
            self._open_s += sample.duration_s
            return
        whole, self._open_bytes = divmod(sample.wire_bytes - missing, self.chunk_bytes)
        self._throughput = rate if whole else self.chunk_bytes / (self._open_s + missing / rate)
        self._open_s = self._open_bytes / rate

    def delivered(self, now_s: float, done: Delivered) -> None:
        """The last chunk of a transfer is as short as it is."""
        if self._open_s > 0:
            self._throughput = self._open_bytes / self._open_s
        self._open_bytes = self._open_s = 0.0

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def decide(self, now_s: float, view: TransferView) -> Decision:
        left_s, curve = sending_s(now_s, view), view.uniform
        levels = [curve.cut_of_bits(bits) for bits in self.bits]
        in_time = (cut for cut in levels if (curve.bytes[cut] - view.sent_bytes) / self._throughput <= left_s)
        return stream(view, "uniform", next(in_time, levels[-1]))

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self._throughput
