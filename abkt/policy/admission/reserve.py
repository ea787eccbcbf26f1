"""A request is accepted once memory for its decoding is reserved. So no prompt is computed for whose KV there is no memory.

Source: NVIDIA Dynamo and Mooncake (FAST'25); they reject a request when this policy lets it wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.admission.base import RESERVE, WAIT, AdmissionDecision, RequestEstimate
from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class Reserve:
    """max_wait_s: a request that has waited longer than this is rejected."""

    max_wait_s: float = math.inf

    def __post_init__(self) -> None:
        bound(self, "max_wait_s", least=0, infinite=True)

    def decide(self, now_s: float, request: RequestEstimate) -> AdmissionDecision:
        if request.waited_s > self.max_wait_s:
            return AdmissionDecision(
                "reject", retry_after_s=self.max_wait_s, reason=f"no memory for decoding within {self.max_wait_s:.3g} s"
            )
        return RESERVE if request.room() else WAIT
