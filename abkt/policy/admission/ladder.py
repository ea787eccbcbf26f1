"""Four steps, rejection last: reserve decode memory, send at a lower rate, prefill on the decode node, reject with Retry-After.

1. Reserve memory for decoding before prefill. If there is none, wait, but no longer than the SLO allows.
2. Accept if the request is expected to meet the SLO on the chosen pair. The bitrate policy quotes the transfer for this
   request's deadline, so the quote may use a lower rate.
3. Otherwise accept with prefill on the decode node, without a transfer, if that meets the SLO.
4. Otherwise reject; Retry-After is the number of seconds by which the request would be late.

Source: this project (docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.admission.base import LOCAL, RESERVE, WAIT, AdmissionDecision, RequestEstimate, late
from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class Ladder:
    """slo_factor: a request is rejected if its expected TTFT is above this many times the SLO."""

    slo_factor: float = 1.0

    def __post_init__(self) -> None:
        bound(self, "slo_factor", above=0, infinite=True)

    def decide(self, now_s: float, request: RequestEstimate) -> AdmissionDecision:
        limit_s = self.slo_factor * request.ttft_slo_s
        expected_s = request.ttft_s()
        if not request.room():
            return WAIT if request.waited_s <= limit_s else late(expected_s, request.ttft_slo_s)
        if expected_s <= limit_s:
            return RESERVE
        local_s = request.local_ttft_s()
        return LOCAL if local_s <= limit_s else late(min(expected_s, local_s), request.ttft_slo_s)
