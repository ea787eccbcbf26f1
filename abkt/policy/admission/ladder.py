"""One step after the other, and rejection last: memory before prefill, a lower rate, the decode node's own cycles, Retry-After.

1. memory for decoding is set aside before prefill; where there is none, wait, but no longer than the SLO leaves
2. in time as routed? The quote is the bitrate policy's for this request's deadline, so a lower rate is in it already
3. in time with the prompt on the decode node itself, so without a transfer?
4. else reject, with the seconds after which it would be in time

Source: DESIGN, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import LOCAL, RESERVE, WAIT, AdmissionDecision, Applicant, late


@dataclass(frozen=True, slots=True)
class Ladder:
    """slack: by how much the SLO may be missed before a request is turned away."""

    slack: float = 1.0

    def __post_init__(self) -> None:
        if not self.slack > 0:
            raise ValueError(f"admission ladder: slack is {self.slack}; it must be above 0")

    def decide(self, now_s: float, applicant: Applicant) -> AdmissionDecision:
        limit_s = self.slack * applicant.ttft_slo_s
        expected_s = applicant.ttft_s()
        if not applicant.room():
            return WAIT if applicant.waited_s <= limit_s else late(expected_s, applicant.ttft_slo_s)
        if expected_s <= limit_s:
            return RESERVE
        local_s = applicant.local_ttft_s()
        return LOCAL if local_s <= limit_s else late(min(expected_s, local_s), applicant.ttft_slo_s)
