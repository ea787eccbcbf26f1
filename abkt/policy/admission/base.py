"""The input of an admission policy and its answer. The policy is called after routing has chosen a pair of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["accept", "wait", "local", "reject"]


class RequestEstimate(Protocol):
    """A request that waits for admission. waited_s: seconds since it arrived. Its methods are costly and are called only if needed."""

    waited_s: float
    ttft_slo_s: float

    def room(self) -> bool:
        """Whether the decode node can reserve memory for the whole request now."""
        ...

    def ttft_s(self) -> float:
        """Expected TTFT on the chosen pair, from arrival: waits, prefill, and the bitrate policy's quote of the transfer."""
        ...

    def local_ttft_s(self) -> float:
        """Expected TTFT with prefill on the decode node, without a transfer; inf if that is not possible."""
        ...


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """action: `accept`; `wait` until a request leaves the cluster; `local`: accept, with prefill on the decode node; or `reject`. reserve:
    whether memory for decoding is reserved before prefill begins. retry_after_s, reason: for a rejection (HTTP Retry-After)."""

    action: Action
    reserve: bool = False
    retry_after_s: float = 0.0
    reason: str = ""


class AdmissionPolicy(Protocol):
    """Accepts requests, delays them or rejects them."""

    def decide(self, now_s: float, request: RequestEstimate) -> AdmissionDecision:
        """What to do with this request now."""
        ...


ACCEPT, RESERVE, WAIT, LOCAL = (
    AdmissionDecision("accept"),
    AdmissionDecision("accept", reserve=True),
    AdmissionDecision("wait"),
    AdmissionDecision("local", reserve=True),
)


def late(expected_s: float, slo_s: float) -> AdmissionDecision:
    """The rejection of a request that would miss the TTFT SLO."""
    retry_s = expected_s - slo_s
    return AdmissionDecision("reject", retry_after_s=retry_s, reason=f"a TTFT of {expected_s:.3g} s is expected, the SLO is {slo_s:.3g} s")
