"""Like `embedded`, but a band is sent only if it removes at least as much distortion per byte as the price of the link.

All transfers that share a NIC have one price (lambda, abkt.policy.price), and a transfer pays the higher one of the sender's and the
receiver's. Distortion is relative to each request's own KV, so a byte of a short request is worth more than a byte of a long one. With
equal slopes, the sum of distortions is the lowest possible for the sum of bytes. With a deadline alone, a transfer would use all the time
it has although others wait for the link. With a price alone, deadlines would be ignored.

A NIC is congested far more often than a deadline is missed. So the price may use at most PRICE_BUDGET_SHARE of the distortion budget above
the target. The rest is kept for transfers that would otherwise be late.

Source: Lagrangian bit allocation (Shoham and Gersho 1988); the multiplier is a price that follows the backlog. docs/design.md.
Assumption: PRICE_BUDGET_SHARE.
"""

from __future__ import annotations

from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from abkt.policy.bitrate.base import refinement_cut
from abkt.policy.bitrate.budgeted import BudgetedEstimate
from abkt.policy.view import TransferView

PRICE_BUDGET_SHARE = 0.25


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class Fleet(BudgetedEstimate):
    """Deadline cut of an embedded stream, and a common price for all transfers of a NIC.

    Parameters
    ----------
    link : Bandwidth, the estimate of wire goodput to this peer.
    target_distortion, mean_distortion, max_distortion : see Budgeted.
    refine_distortion : the distortion to refine to after decoding has begun, as far as the bands are worth the price. The price falls while
        no other transfer uses the link. inf: no refinement.

    Source: Lagrangian bit allocation (Shoham and Gersho 1988).
    """

    def _refine_to(self, view: TransferView) -> int:
        cut = refinement_cut(view.slope, self.refine_distortion)
        return min(cut, view.slope.cut_at_price(view.price)) if view.started else cut

    def _start_cut(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        curve = view.slope
        cut, worth = self._cut_in_time(now_s, view, asked, rate), curve.cut_at_price(view.price)
        if min(cut, worth) >= asked:
            return cut
        allowed = self._budget.allowed()
        priced = self.target_distortion + PRICE_BUDGET_SHARE * (allowed - self.target_distortion)
        return max(min(cut, max(worth, curve.cut_reaching(priced))), curve.cut_reaching(allowed))
