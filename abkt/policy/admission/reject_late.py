"""A request that would miss the TTFT SLO is rejected before any work is spent on it.

    reject  iff  expected TTFT > slo_factor x SLO_TTFT

Source: Mooncake (FAST'25), early rejection (section 5; without its prediction of later load).
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import ACCEPT, AdmissionDecision, RequestEstimate, late
from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class RejectLate:
    """slo_factor: a request is rejected if its expected TTFT is above this many times the SLO."""

    slo_factor: float = 1.0

    def __post_init__(self) -> None:
        bound(self, "slo_factor", above=0, infinite=True)

    def decide(self, now_s: float, request: RequestEstimate) -> AdmissionDecision:
        expected_s = request.ttft_s()
        return ACCEPT if expected_s <= self.slo_factor * request.ttft_slo_s else late(expected_s, request.ttft_slo_s)
