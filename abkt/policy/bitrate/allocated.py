"""The same mean bits for every request, spent where they remove most distortion. The policy adapts to the cells, not to the link.

Requests whose KV is harder to code get more distortion; `equal` gives every request the same distortion instead.
Assumption: the number of bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import Stateless, stream
from abkt.policy.view import Decision, Order, TransferView
from abkt.ranges import OutOfRange, bound


@dataclass(slots=True)
class Allocated(Stateless):
    """bits: mean bits per KV value; the coarsest cut with at least that many is sent. order: `uniform` gives every cell the same bits."""

    bits: float
    order: Order = "slope"

    def __post_init__(self) -> None:
        bound(self, "bits", least=0, most=8)
        if self.order not in ("slope", "uniform"):
            raise OutOfRange(f"order is {self.order!r}; it must be slope or uniform")

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return stream(view, self.order, view.curve(self.order).cut_of_bits(self.bits))
