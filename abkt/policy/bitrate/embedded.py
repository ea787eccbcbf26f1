"""Send what removes most distortion per byte, as far as asked, as long as the deadline allows, within a budget of distortion.

Source: post-compression rate-distortion optimisation (EBCOT, Taubman 2000) applied to KV passes; DESIGN: one embedded stream whose
rate is a cut. The cut is asked for again before each frame, so it follows a link that changes under a transfer. Where raw or lossless bytes
are usable no later than what was asked for, they go instead, unless only less would be in time (break_even.py). The budget: budget.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.policy.bitrate.base import Linked, bytes_in_time, cut_behind, stream
from abkt.policy.bitrate.break_even import coder_for, whole_instead
from abkt.policy.bitrate.budget import Budget
from abkt.policy.view import Decision, Delivered, Refined, TransferView


@dataclass(slots=True)
class Embedded(Linked):
    """target_distortion: as good as asked, where time allows. mean_distortion: of all transfers. max_distortion: of any one.
    behind_distortion: go on to this while the request is decoded and the link has nothing else to do; inf: nothing follows."""

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
        if view.started:  # no cut is asked for any more
            return stream(view, "slope", view.sent_cut, behind=cut_behind(curve, self.behind_distortion))
        low = self.link.low_bytes_per_s(now_s)
        asked = curve.cut_reaching(self.target_distortion)
        cut = min(asked, curve.cut_within(bytes_in_time(low, now_s, view)))
        if cut < asked:
            cut = max(cut, curve.cut_reaching(self._budget.allowed()))
        sent = stream(view, "slope", cut, behind=cut_behind(curve, self.behind_distortion), coder=coder_for(low, view, asked))
        if view.sent_bytes == 0:
            return whole_instead(low, view, stream(view, "slope", asked), sent, view.deadline_s - now_s) or sent
        return sent
