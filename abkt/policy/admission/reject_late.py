"""Who would miss the TTFT SLO is turned away at the door, before anything is spent on it.

    reject  iff  expected TTFT > slack SLO_TTFT

Source: Mooncake (FAST'25), early rejection (section 5; without its prediction of later load).
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import ACCEPT, AdmissionDecision, Applicant, late


@dataclass(frozen=True, slots=True)
class RejectLate:
    slack: float = 1.0

    def __post_init__(self) -> None:
        if not self.slack > 0:
            raise ValueError(f"admission reject_late: slack is {self.slack}; it must be above 0")

    def decide(self, now_s: float, applicant: Applicant) -> AdmissionDecision:
        expected_s = applicant.ttft_s()
        return ACCEPT if expected_s <= self.slack * applicant.ttft_slo_s else late(expected_s, applicant.ttft_slo_s)
