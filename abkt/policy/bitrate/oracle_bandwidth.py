"""A bound: Embedded with the link's capacity known for all time, instead of estimated.

What it does not know is who else will use the link. A policy that does better than this one does so by what others leave it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from abkt.capacity import Capacity
from abkt.policy.bitrate.base import LOSSLESS, RAW, Blind, cut_behind, stream
from abkt.policy.bitrate.break_even import parts
from abkt.policy.bitrate.budget import Budget
from abkt.policy.view import Decision, Delivered, Refined, TransferView


@dataclass(slots=True)
class OracleBandwidth(Blind):
    """capacity: of the link, on the clock that now_s is of. The distortions: as Embedded's, so what follows the start too."""

    capacity: Capacity
    target_distortion: float = 0.002
    mean_distortion: float = 0.004
    max_distortion: float = 0.016
    behind_distortion: float = math.inf
    _budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = Budget(self.target_distortion, self.mean_distortion, self.max_distortion)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self._budget.spend(done.distortion)

    def refined(self, now_s: float, done: Refined) -> None:
        self._budget.correct(done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        curve = view.slope
        asked = curve.cut_reaching(self.target_distortion)
        in_time = bisect_right(
            range(asked + 1), view.deadline_s, key=lambda cut: self._usable_at_s(now_s, view, Decision("stream", "slope", cut))
        )
        cut = max(0, in_time - 1)
        if cut < asked:
            cut = max(cut, curve.cut_reaching(self._budget.allowed()))
        sent = stream(view, "slope", cut, behind=cut_behind(curve, self.behind_distortion))
        return self._whole_instead(now_s, view, asked, sent) if view.sent_bytes == 0 else sent

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.capacity.at(now_s)[0]

    def _whole_instead(self, now_s: float, view: TransferView, asked: int, sent: Decision) -> Decision:
        """As break_even.whole_instead."""
        whole = min((RAW, LOSSLESS) if view.lossless_bytes > 0 else (RAW,), key=lambda d: self._usable_at_s(now_s, view, d))
        whole_s, hidden_s = self._usable_at_s(now_s, view, whole), now_s + view.hidden_s
        no_later = whole_s <= max(hidden_s, self._usable_at_s(now_s, view, stream(view, "slope", asked)))
        in_time = sent.cut >= asked or whole_s <= max(hidden_s, view.deadline_s, self._usable_at_s(now_s, view, sent))
        return whole if no_later and in_time else sent

    def _usable_at_s(self, now_s: float, view: TransferView, decision: Decision) -> float:
        encode_s, wire_bytes, expand_s = parts(view, decision)
        return self.capacity.finish_s(now_s + encode_s, wire_bytes) + expand_s if encode_s < math.inf else math.inf
