"""What a policy of admission sees and says, once routing has chosen where a request would go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["accept", "wait", "local", "reject"]


class Applicant(Protocol):
    """A request at the door. waited_s: since it arrived. Its methods cost something, and are asked only if they matter."""

    waited_s: float
    ttft_slo_s: float

    def room(self) -> bool:
        """The decode node can set aside memory for the whole request now."""
        ...

    def ttft_s(self) -> float:
        """Expected, from its arrival, as routed: waits, prefill, the transfer as its bitrate policy quotes it."""
        ...

    def local_ttft_s(self) -> float:
        """Expected, with the prompt on the decode node itself; math.inf where it must not be."""
        ...


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """accept; wait at the door until somebody leaves; accept, but compute the prompt where it is decoded; or reject, with a reason and the
    seconds after which it may be asked again (Retry-After). reserve: memory for decoding is set aside before prefill begins."""

    action: Action
    reserve: bool = False
    retry_after_s: float = 0.0
    reason: str = ""


class AdmissionPolicy(Protocol):
    def decide(self, now_s: float, applicant: Applicant) -> AdmissionDecision: ...


ACCEPT, RESERVE, WAIT, LOCAL = (
    AdmissionDecision("accept"),
    AdmissionDecision("accept", reserve=True),
    AdmissionDecision("wait"),
    AdmissionDecision("local", reserve=True),
)


def late(expected_s: float, slo_s: float) -> AdmissionDecision:
    retry_s = expected_s - slo_s
    return AdmissionDecision("reject", retry_after_s=retry_s, reason=f"a TTFT of {expected_s:.3g} s is expected, the SLO is {slo_s:.3g} s")
