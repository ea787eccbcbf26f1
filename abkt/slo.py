"""The service-level objective: the latencies that a request should keep."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class SLO:
    """Service-level objective. A request is good if it completed and met both limits.

    Parameters
    ----------
    ttft_s : longest time to first token, seconds.
    tpot_s : longest time per output token, seconds. A request without a second decoded token has no TPOT, so it meets this limit.
    """

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        bound(self, "ttft_s", "tpot_s", above=0, infinite=True)
