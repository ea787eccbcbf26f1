"""For each chunk, the finest level that meets the SLO if the link keeps the throughput of the last chunk.

    level = the finest whose remaining bytes / throughput <= SLO - time elapsed;  throughput = that of the last chunk

Source: CacheGen (SIGCOMM 2024), its streaming adaptation. (Its released experiment gives each chunk an equal share of the SLO instead of
the remaining time.) In CacheGen each chunk of tokens keeps the level at which it was sent, and a chunk may be sent as text and prefilled
again. Here a cut is one level for all tokens, so a finer cut later also improves the earlier chunks. Text is not sent: if no level is in
time, the coarsest is sent. Assumptions: the levels; chunks are counted in wire bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from abkt.policy.bitrate.base import sending_s, stream
from abkt.policy.view import Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.ranges import OutOfRange, bound, short


@dataclass(slots=True)
class CacheGen:
    """CacheGen's adaptation of the level to the throughput of the last chunk.

    Parameters
    ----------
    initial_bytes_per_s : throughput assumed until the first chunk was sent.
    chunk_bytes : wire bytes of a chunk.
    bits : the levels, bits per KV value, finest first.

    Source: CacheGen (SIGCOMM 2024).
    """

    initial_bytes_per_s: float
    chunk_bytes: float = 1e6
    bits: Sequence[int] = (8, 4, 2)
    _throughput: float = field(default=math.nan, init=False)
    _open_bytes: float = field(default=0.0, init=False)  # bytes sent of the current chunk
    _open_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        bound(self, "initial_bytes_per_s", above=0, infinite=True)
        bound(self, "chunk_bytes", above=0)
        bound(self, "bits", least=1, most=8)
        if not self.bits or list(self.bits) != sorted(self.bits, reverse=True):
            raise OutOfRange(f"bits is {short(self.bits)}; at least one level is needed, and they must fall, finest first")
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
        """The last chunk of a transfer may be shorter."""
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
