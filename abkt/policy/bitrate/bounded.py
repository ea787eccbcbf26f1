"""Any policy within a distortion budget: its cut is no finer than the target and no coarser than the budget allows.

So a published rule gets what our own policies get: the same bounds (budget.py), the same stream and the same refinement. What is left of
the policy is how it follows the link. Raw and lossless decisions pass unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from abkt.policy.bitrate.base import refinement_cut, stream
from abkt.policy.bitrate.budget import Budget
from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Order, Refined, TransferView
from abkt.ranges import OutOfRange, bound


@dataclass(slots=True)
class Bounded:
    """A policy within a distortion budget.

    Parameters
    ----------
    inner : the policy. It sees the curve of `order` as both of its curves, so its levels are levels of that stream. It sees no klt coder;
        `Coded` around this policy gives it one.
    target_distortion, mean_distortion, max_distortion, refine_distortion : see Budgeted.
    order : the order of the stream.
    """

    inner: BitratePolicy
    target_distortion: float = 0.002
    mean_distortion: float = 0.004
    max_distortion: float = 0.016
    refine_distortion: float = math.inf
    order: Order = "uniform"
    _budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        bound(self, "refine_distortion", least=0, infinite=True)
        if self.order not in ("slope", "uniform"):
            raise OutOfRange(f"order is {self.order!r}; it must be slope or uniform")
        self._budget = Budget(self.target_distortion, self.mean_distortion, self.max_distortion)

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.inner.observe(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self._budget.spend(done.distortion)
        self.inner.delivered(now_s, done)

    def refined(self, now_s: float, done: Refined) -> None:
        self._budget.refund(done)
        self.inner.refined(now_s, done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        curve = view.curve(self.order)
        refine = refinement_cut(curve, self.refine_distortion)
        if view.started:  # the promised cut has arrived; only refinement remains
            return stream(view, self.order, view.sent_cut, refine_to_cut=refine)
        chosen = self.inner.decide(now_s, replace(view, slope=curve, uniform=curve, klt=None))
        if chosen.mode != "stream":
            return chosen
        cut = max(min(chosen.cut, curve.cut_reaching(self.target_distortion)), curve.cut_reaching(self._budget.allowed()))
        return stream(view, self.order, cut, chosen.depth_bits, refine, chosen.coder)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.inner.estimate_bytes_per_s(now_s)
