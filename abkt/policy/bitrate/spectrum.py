"""Three tiers, the finest that arrives in time: fp16, int8, int4; without int4 for models that a probe found not to bear it.

Source: SpectrumKV (arXiv 2606.08635). There each token has its tier, by importance, within a byte budget b of the fp16 size; a model that
fails three retrieval trials at int4 gets fp16 and int8 alone. The tiers of tokens are a codec (abkt.codec.baselines.tiers); a decision
here is one tier for all. Assumption: b is what passes until the deadline, by the mean of the link.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import RAW, Linked, bytes_in_time, stream
from abkt.policy.bitrate.break_even import usable_s
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class Spectrum(Linked):
    """bears_int4: what the probe of the model said."""

    bears_int4: bool = True

    def decide(self, now_s: float, view: TransferView) -> Decision:
        rate = self.link.mean_bytes_per_s(now_s)
        if now_s + usable_s(rate, view, RAW) <= view.deadline_s:
            return RAW
        int8 = view.uniform.cut_of_bits(8)
        if not self.bears_int4 or view.uniform.bytes[int8] <= bytes_in_time(rate, now_s, view):
            return stream(view, "uniform", int8, 8)
        return stream(view, "uniform", view.uniform.cut_of_bits(4), 4)
