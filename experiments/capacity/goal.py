"""The goal of a run: enough requests within the SLO, at a bounded distortion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.report.words import percent
from experiments.study.ranking import TAIL


@dataclass(frozen=True, slots=True)
class Goal:
    """What a run has to keep.

    Parameters
    ----------
    share : least share of the requests that complete within the SLO's TTFT and TPOT. The later half of the requests has to keep it too, so
        that a queue that only grows is not taken for capacity.
    max_distortion : D; token-weighted distortion may be D on average and 8 D at the 99th percentile.
    """

    share: float
    max_distortion: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"goal_share is {self.share:g}; it must be above 0 and at most 1")
        if not self.max_distortion > 0:
            raise ValueError(f"max_distortion is {self.max_distortion:g}; it must be above 0, .inf for no limit")

    def missed(self, figures: Mapping[str, Any]) -> str:
        """Why a run misses the goal, in a few words; empty if it meets it. figures: as run_part gives them."""
        mean, p99 = figures.get("distortion.mean"), figures.get("distortion.p99")
        if mean is None or p99 is None:
            return "no request completed"
        if mean > self.max_distortion:
            return f"mean distortion {mean:.2g} is above {self.max_distortion:g}"
        if p99 > TAIL * self.max_distortion:
            return f"p99 distortion {p99:.2g} is above {TAIL * self.max_distortion:g}"
        if (share := kept_share(figures)) < self.share:
            return f"{percent(share)} of the requests are within the SLO"
        return ""


def kept_share(figures: Mapping[str, Any]) -> float:
    """The share of requests within the SLO, of all or of the later half, whichever is less."""
    return min(float(figures["good_share"]), float(figures["late_share"]))
