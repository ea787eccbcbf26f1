"""Send what removes most distortion per byte, as far as asked, as long as the deadline allows.

Source: post-compression rate-distortion optimisation (EBCOT, Taubman 2000) applied to KV passes; DESIGN: one embedded stream whose
rate is a cut. The cut is asked for again before each frame, so it follows a link that changes under a transfer.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.break_even import compression_loses
from abkt.policy.view import Decision, GoodputSample, TransferView

RAW = Decision(mode="raw")


@dataclass(slots=True)
class Embedded:
    """target_distortion: as good as asked, where time allows. max_distortion: decoding never starts above it, however late."""

    link: Bandwidth
    target_distortion: float = 0.01
    max_distortion: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.target_distortion <= self.max_distortion:
            raise ValueError("embedded: 0 <= target_distortion <= max_distortion must hold")

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.link.update(now_s, sample)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        low = self.link.low_bytes_per_s()
        asked = view.slope.cut_reaching(self.target_distortion)
        if view.sent_bytes == 0 and compression_loses(low, view, view.slope.bytes[asked]):  # raw is exact, so a tie is its
            return RAW
        left_s = max(0.0, view.deadline_s - now_s - view.encode_s - view.expand_s)
        cut = min(asked, view.slope.cut_within(view.sent_bytes + low * left_s))
        if cut < asked:
            cut = max(cut, view.slope.cut_reaching(self.max_distortion))
        return Decision(mode="stream", order="slope", cut=max(cut, view.sent_cut))

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.link.mean_bytes_per_s()
