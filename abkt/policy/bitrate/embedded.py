"""Send the bands that remove most distortion per byte first, up to the target or the deadline, within a distortion budget.

The cut is decided again before each frame, so it follows a link that changes during the transfer. Raw or lossless bytes are sent instead
if they are usable no later than the stream at the target, unless only a coarser stream would meet the deadline (break_even.py).

Source: post-compression rate-distortion optimisation (EBCOT, Taubman 2000), applied to the passes of a KV stream; docs/design.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mypy_extensions import mypyc_attr

from abkt.policy.bitrate.budgeted import BudgetedEstimate
from abkt.policy.view import Decision, TransferView
from abkt.ranges import bound


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class Embedded(BudgetedEstimate):
    """Deadline cut of an embedded stream, from an estimate of the link.

    Parameters
    ----------
    link : Bandwidth, the estimate of wire goodput to this peer; the policy plans with its low quantile.
    target_distortion, mean_distortion, max_distortion, refine_distortion : see Budgeted.

    Source: EBCOT's rate-distortion optimisation (Taubman 2000), applied to KV.
    """


@dataclass(slots=True)
class EmbeddedBits(BudgetedEstimate):
    """Embedded with the same bits for every request in place of the same distortion, to see what equal distortion is worth.

    Parameters
    ----------
    link, target_distortion, mean_distortion, max_distortion, refine_distortion : see Budgeted. The budget always allows the target.
    bits : mean bits per KV value to send where time allows.
    """

    bits: float = 2.0

    def __post_init__(self) -> None:
        BudgetedEstimate.__post_init__(self)
        bound(self, "bits", least=0, most=8)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        """Without the klt coder, whose nominal bits are no measure of its bytes."""
        return BudgetedEstimate.decide(self, now_s, view if view.klt is None else replace(view, klt=None))

    def _asked_cut(self, view: TransferView) -> int:
        return view.slope.cut_of_bits(self.bits)

    def _start_cut(self, now_s: float, view: TransferView, asked: int, rate: float) -> int:
        """As of the base, but the bits that are asked for have no distortion that the budget always allows."""
        return max(self._cut_in_time(now_s, view, asked, rate), view.slope.cut_reaching(self._budget.allowed()))
