"""The finest of three tiers that arrives in time: fp16, int8 or int4. Models that do not tolerate int4 use the first two.

Source: SpectrumKV (arXiv 2606.08635). There each token gets a tier by its importance, within a byte budget b relative to the fp16 size, and
a model that fails three retrieval trials at int4 gets fp16 and int8 only. Tiers per token are a codec (abkt.codec.baselines.tiers); this
policy chooses one tier for all tokens. Assumption: b is what the link, at its mean estimate, can send by the deadline.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import RAW, LinkEstimating, bytes_in_time, stream
from abkt.policy.bitrate.break_even import usable_s
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class Spectrum(LinkEstimating):
    """link: the estimate of wire goodput. int4_allowed: whether the model passed the retrieval trials at int4."""

    int4_allowed: bool = True

    def decide(self, now_s: float, view: TransferView) -> Decision:
        rate = self.link.mean_bytes_per_s(now_s)
        if now_s + usable_s(rate, view, RAW) <= view.deadline_s:
            return RAW
        int8 = view.uniform.cut_of_bits(8)
        if not self.int4_allowed or view.uniform.bytes[int8] <= bytes_in_time(rate, now_s, view):
            return stream(view, "uniform", int8, 8)
        return stream(view, "uniform", view.uniform.cut_of_bits(4), 4)
