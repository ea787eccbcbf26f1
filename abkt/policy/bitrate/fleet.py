"""Send what is worth its place on the link: as Embedded, and no further than where a band removes less distortion per byte than the price.

One price lambda for all transfers that share a NIC (price.py), the higher of the sender's and the receiver's; distortion is relative to
each request's own KV, so a short request's bytes are worth more than a long one's. Equal slopes are the optimum of the sum of distortions
at a given sum of bytes. The deadline alone lets a transfer take all the time it has, whoever waits behind it; the price alone knows no
deadline. Raw or exact where they are usable no later than what was asked for; within a budget (budget.py).

A crowd comes far more often than a deadline is missed. So the price may take PRICED of what has been saved at most, and what would be late
finds the rest.

Source: DESIGN, section 7; Lagrangian bit allocation (Shoham and Gersho 1988), with a price that follows the backlog for the multiplier.
Assumptions: PRICED.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.policy.bitrate.base import Linked, bytes_in_time, cut_behind, stream
from abkt.policy.bitrate.break_even import coder_for, whole_instead
from abkt.policy.bitrate.budget import Budget
from abkt.policy.view import Decision, Delivered, Refined, TransferView

PRICED = 0.25


@dataclass(slots=True)
class Fleet(Linked):
    """target_distortion, mean_distortion, max_distortion: as Embedded's. behind_distortion: go on to this behind the start, once it has
    begun as far as it is worth the price, which falls while nobody else wants the link; inf: nothing follows."""

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
        behind, worth = cut_behind(curve, self.behind_distortion), curve.cut_worth(view.price)
        if view.started:
            return stream(view, "slope", view.sent_cut, behind=min(behind, worth))
        low = self.link.low_bytes_per_s(now_s)
        asked = curve.cut_reaching(self.target_distortion)
        in_time = curve.cut_within(bytes_in_time(low, now_s, view))
        cut = min(asked, in_time)
        if min(cut, worth) < asked:
            allowed = self._budget.allowed()
            priced = self.target_distortion + PRICED * (allowed - self.target_distortion)
            cut = max(min(cut, max(worth, curve.cut_reaching(priced))), curve.cut_reaching(allowed))
        sent = stream(view, "slope", cut, behind=behind, coder=coder_for(low, view, asked))
        if view.sent_bytes == 0:
            return whole_instead(low, view, stream(view, "slope", asked), sent, view.deadline_s - now_s) or sent
        return sent
