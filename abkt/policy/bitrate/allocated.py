"""The same mean bits for every request, put where they remove most distortion: adaptation to the cells, none to the link.

What `embedded` has to beat if following the link is worth anything: it differs from this one in nothing else. Assumptions: the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import Blind, stream
from abkt.policy.view import Decision, Order, TransferView


@dataclass(slots=True)
class Allocated(Blind):
    """bits: mean bits per KV value, the coarsest cut with at least so many. order: uniform gives every cell the same."""

    bits: float
    order: Order = "slope"

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 8 or self.order not in ("slope", "uniform"):
            raise ValueError(f"bitrate.bits is {self.bits} in order {self.order!r}; 0 to 8 in order slope or uniform are possible")

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return stream(view, self.order, view.curve(self.order).cut_of_bits(self.bits))
