"""Any policy with an off switch: raw where what it would send is usable no sooner than raw bytes.

Source: DESIGN, section 1: the break-even test (break_even.py). Assumption: the mean of the link, so that the test errs as often one way
as the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.base import RAW
from abkt.policy.bitrate.break_even import loses
from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Refined, TransferView


@dataclass(slots=True)
class Off:
    """link: what the test believes, whatever the inner policy does. pipelined: whether the codec works while bytes flow."""

    inner: BitratePolicy
    link: Bandwidth
    pipelined: bool = False

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.link.update(now_s, sample)
        self.inner.observe(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self.inner.delivered(now_s, done)

    def refined(self, now_s: float, done: Refined) -> None:
        self.inner.refined(now_s, done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        decision = self.inner.decide(now_s, view)
        if view.sent_bytes == 0 and loses(self.link.mean_bytes_per_s(now_s), view, decision, self.pipelined):
            return RAW
        return decision

    def estimate_bytes_per_s(self, now_s: float) -> float:
        estimate = self.inner.estimate_bytes_per_s(now_s)
        return self.link.mean_bytes_per_s(now_s) if math.isnan(estimate) else estimate
