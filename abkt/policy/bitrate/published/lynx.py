"""Send four bits first (the anchor), then the other four (the residual) if they can arrive before the deadline.

Source: Lynx (arXiv 2607.01831). Lynx starts decoding speculatively on the anchor, always sends the residual, and verifies the decoded
tokens once it is there. This policy does not refine, so the residual is sent before decoding begins or not at all.
Assumption: sending the residual is decided by the deadline and the mean estimate of the link.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import LinkEstimating, bytes_in_time, stream
from abkt.policy.view import Decision, TransferView

ANCHOR_BITS, WHOLE_BITS = 4, 8


@dataclass(slots=True)
class Lynx(LinkEstimating):
    """link: the estimate of wire goodput to this peer; its mean is used."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        whole = view.uniform.cut_of_bits(WHOLE_BITS)
        in_time = view.uniform.bytes[whole] <= bytes_in_time(self.link.mean_bytes_per_s(now_s), now_s, view)
        return stream(view, "uniform", whole if in_time else view.uniform.cut_of_bits(ANCHOR_BITS), WHOLE_BITS)
