"""Nobody is let in before memory for decoding is set aside, so no prompt is computed whose KV has nowhere to go.

Source: DESIGN, section 7; NVIDIA Dynamo and Mooncake (FAST'25), which reject where this waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.admission.base import RESERVE, WAIT, AdmissionDecision, Applicant


@dataclass(frozen=True, slots=True)
class Reserve:
    """patience_s: who has waited for longer is rejected."""

    patience_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.patience_s >= 0:
            raise ValueError(f"admission reserve: patience_s is {self.patience_s}; it must not be below 0")

    def decide(self, now_s: float, applicant: Applicant) -> AdmissionDecision:
        if applicant.waited_s > self.patience_s:
            return AdmissionDecision(
                "reject", retry_after_s=self.patience_s, reason=f"no memory for decoding within {self.patience_s:.3g} s"
            )
        return RESERVE if applicant.room() else WAIT
