"""The compression profile with the least predicted latency, corrected by the errors of earlier predictions.

    T_0 = raw / B,   T_p = encode_p + bytes_p / B + expand_p,   profiles with T_p < T_0 and distortion within the limit
    choose the least T_p + delta_p;   raw if there is no such profile
    after a transfer with p:   delta_p = (1 - eta) delta_p + eta (T_observed - T_p)

Source: KVServe (arXiv 2605.13734), theorems 1 and 2, and its released controller (eta 0.3, no exploration). Two of its rules are left out:
the cooldown after repeated violations, and raw if no profile meets the SLO, which would only be later. T_observed and T_p cover encoding
and sending, the sender's part. Both use B at the end of the transfer, so delta_p holds the prediction error of the codec and not that of
the link. Assumptions: the profiles, and distortion as the measure of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from abkt.policy.bitrate.base import LOSSLESS, RAW, LinkEstimating, levels, stream
from abkt.policy.bitrate.break_even import compression_loses, stage_costs, usable_s
from abkt.policy.view import Decision, Delivered, TransferView
from abkt.ranges import bound


@dataclass(slots=True)
class KVServe(LinkEstimating):
    """KVServe's controller: the least predicted latency among accurate profiles.

    Parameters
    ----------
    link : Bandwidth, the estimate of wire goodput to this peer; its mean is used.
    bits : the lossy profiles, bits per KV value (2, 4 or 8). Lossless is a profile too, if it was measured.
    max_distortion : profiles with more distortion are not used.
    eta : weight of the newest residual, in [0, 1].

    Source: KVServe (arXiv 2605.13734).
    """

    bits: Sequence[int] = (8, 4, 2)
    max_distortion: float = 0.02
    eta: float = 0.3
    _residual_s: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        levels(self)
        bound(self, "eta", least=0, most=1)
        bound(self, "max_distortion", least=0, infinite=True)

    def delivered(self, now_s: float, done: Delivered) -> None:
        if done.decision.mode == "raw":
            return
        encode_s, wire_bytes, _ = stage_costs(done.view, done.decision)
        residual_s = done.seconds - (encode_s + wire_bytes / self.link.mean_bytes_per_s(now_s))
        name = _profile(done.decision)
        self._residual_s[name] = (1 - self.eta) * self._residual_s.get(name, 0.0) + self.eta * residual_s

    def decide(self, now_s: float, view: TransferView) -> Decision:
        rate = self.link.mean_bytes_per_s(now_s)
        gaining = [p for p in self._profiles(view) if not compression_loses(rate, view, p)]
        return min(gaining, key=lambda p: usable_s(rate, view, p) + self._residual_s.get(_profile(p), 0.0), default=RAW)

    def _profiles(self, view: TransferView) -> list[Decision]:
        """The profiles whose distortion is within the limit."""
        every = [stream(view, "uniform", view.uniform.cut_of_bits(bits), bits) for bits in self.bits]
        accurate = [p for p in every if view.uniform.distortion[p.cut] <= self.max_distortion]
        return [LOSSLESS, *accurate] if view.lossless_bytes > 0 else accurate


def _profile(decision: Decision) -> str:
    return "lossless" if decision.mode == "lossless" else f"{decision.depth_bits} bits"
