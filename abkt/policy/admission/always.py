"""Every request is accepted at once; if there is no memory for it, it waits inside the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import ACCEPT, AdmissionDecision, RequestEstimate


@dataclass(frozen=True, slots=True)
class Always:
    """Accepts every request."""

    def decide(self, now_s: float, request: RequestEstimate) -> AdmissionDecision:
        return ACCEPT
