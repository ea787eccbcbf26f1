"""A bound: any policy, given the request's own rate-distortion curve before encoding instead of the expected one.

Only the simulator knows this curve (TransferView.own_slope). On real processes, and in quotes for routing, the expected curve is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Refined, TransferView


@dataclass(slots=True)
class OracleProfile:
    """inner: the policy; it must cut in slope order."""

    inner: BitratePolicy

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.inner.observe(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self.inner.delivered(now_s, done)

    def refined(self, now_s: float, done: Refined) -> None:
        self.inner.refined(now_s, done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        own = view.own_slope if math.isfinite(view.raw_s) else None  # once it is encoded, the view has the stream's own curve
        return self.inner.decide(now_s, replace(view, slope=own.scaled(view.raw_bytes)) if own else view)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.inner.estimate_bytes_per_s(now_s)
