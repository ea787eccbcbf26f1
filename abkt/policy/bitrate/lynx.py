"""4 + 4: the high four bits first, as the anchor; the low four, the residual, where the deadline leaves them time.

Source: Lynx (arXiv 2607.01831). There decoding starts on the anchor, speculatively, while the residual always follows, and what was
decoded is verified once it is there. Nothing is refined behind the start here yet, so the residual has to come before it or not at all.
Assumption: that choice, by the deadline and the mean of the link.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import Linked, bytes_in_time, stream
from abkt.policy.view import Decision, TransferView

ANCHOR_BITS, WHOLE_BITS = 4, 8


@dataclass(slots=True)
class Lynx(Linked):
    def decide(self, now_s: float, view: TransferView) -> Decision:
        whole = view.uniform.cut_of_bits(WHOLE_BITS)
        in_time = view.uniform.bytes[whole] <= bytes_in_time(self.link.mean_bytes_per_s(now_s), now_s, view)
        return stream(view, "uniform", whole if in_time else view.uniform.cut_of_bits(ANCHOR_BITS), WHOLE_BITS)
