"""Everybody is let in at once; who finds no memory waits inside."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import ACCEPT, AdmissionDecision, Applicant


@dataclass(frozen=True, slots=True)
class Always:
    def decide(self, now_s: float, applicant: Applicant) -> AdmissionDecision:
        return ACCEPT
