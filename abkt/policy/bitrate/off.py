"""Any policy with an off switch: raw bytes are sent if compressed ones would be usable no sooner.

Source: the break-even test (break_even.py). Assumption: the test uses the mean estimate of the link, so that it errs as often in one
direction as in the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.base import RAW
from abkt.policy.bitrate.break_even import compression_loses
from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Refined, TransferView


@dataclass(slots=True)
class Off:
    """inner: the policy. link: the estimator that the test uses. pipelined: whether encoding, sending and expanding overlap."""

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
        if view.sent_bytes == 0 and compression_loses(self.link.mean_bytes_per_s(now_s), view, decision, self.pipelined):
            return RAW
        return decision

    def estimate_bytes_per_s(self, now_s: float) -> float:
        estimate = self.inner.estimate_bytes_per_s(now_s)
        return self.link.mean_bytes_per_s(now_s) if math.isnan(estimate) else estimate
