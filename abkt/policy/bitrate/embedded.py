"""Send what removes most distortion per byte, as far as asked, as long as the deadline allows, within a budget of distortion.

Source: post-compression rate-distortion optimisation (EBCOT, Taubman 2000) applied to KV passes; DESIGN: one embedded stream whose
rate is a cut. The cut is asked for again before each frame, so it follows a link that changes under a transfer.

The budget: after n transfers of total distortion T, the next may have up to (n + 1) mean_distortion - T, and never more than
max_distortion. So what good times leave unused pays for bad ones, and the mean over all transfers stays within mean_distortion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.break_even import compression_loses
from abkt.policy.view import Decision, GoodputSample, TransferView

RAW = Decision(mode="raw")


@dataclass(slots=True)
class Embedded:
    """target_distortion: as good as asked, where time allows. mean_distortion: of all transfers. max_distortion: of any one."""

    link: Bandwidth
    target_distortion: float = 0.005
    mean_distortion: float = 0.01
    max_distortion: float = 0.08
    _delivered: int = field(default=0, init=False)
    _spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.target_distortion <= self.mean_distortion <= self.max_distortion:
            raise ValueError("embedded: 0 <= target_distortion <= mean_distortion <= max_distortion must hold")

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.link.update(now_s, sample)

    def delivered(self, now_s: float, distortion: float) -> None:
        self._delivered += 1
        self._spent += distortion

    def decide(self, now_s: float, view: TransferView) -> Decision:
        low = self.link.low_bytes_per_s()
        asked = view.slope.cut_reaching(self.target_distortion)
        if view.sent_bytes == 0 and compression_loses(low, view, view.slope.bytes[asked]):  # raw is exact, so a tie is its
            return RAW
        left_s = max(0.0, view.deadline_s - now_s - view.encode_s - view.expand_s)
        cut = min(asked, view.slope.cut_within(view.sent_bytes + low * left_s))
        if cut < asked:
            cut = max(cut, view.slope.cut_reaching(self.allowed_distortion()))
        return Decision(mode="stream", order="slope", cut=max(cut, view.sent_cut))

    def allowed_distortion(self) -> float:
        """What the next transfer may have at most."""
        budget = (self._delivered + 1) * self.mean_distortion - self._spent
        return min(max(budget, self.target_distortion), self.max_distortion)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.link.mean_bytes_per_s()
