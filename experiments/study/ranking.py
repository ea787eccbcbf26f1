"""Which policy is best, and what it costs to have believed the model.

Best: most goodput at the SLO among the policies with mean distortion <= D and p99 distortion <= 8 D (token-weighted); goodputs within
1 % of the highest are a tie, which the lower mean TTFT wins. Without the constraint the lowest rate would win every latency figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TAIL = 8.0  # p99 distortion may be this many times the mean's limit
TIE = 0.01


@dataclass(frozen=True, slots=True)
class Standing:
    """One policy's figures; reason: why it is not feasible, empty if it is."""

    policy: str
    goodput_per_s: float
    ttft_mean_s: float
    distortion_mean: float
    distortion_p99: float
    reason: str

    @property
    def feasible(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class StudyVerdict:
    """pick: the best policy, None if none is feasible. ranking: the feasible ones, best first, then the others by distortion."""

    pick: str | None
    ranking: tuple[Standing, ...]
    reason: str

    def of(self, policy: str) -> Standing:
        return next(s for s in self.ranking if s.policy == policy)


@dataclass(frozen=True, slots=True)
class Regret:
    """How much worse than hardware's best the model's pick is on hardware: share of goodput lost, seconds of mean TTFT added.

    violates: the pick breaks the distortion limit on hardware, so that no figure makes up for it. Both are nan without two picks.
    """

    model_pick: str | None
    hardware_best: str | None
    goodput_share: float
    ttft_s: float
    violates: bool


def rank(summaries: Mapping[str, Mapping[str, Any]], max_distortion: float) -> StudyVerdict:
    """summaries: policy -> summary as abkt.records.summarize gives it (or as read back from summary.json)."""
    standings = [_standing(policy, summary, max_distortion) for policy, summary in summaries.items()]
    feasible = [s for s in standings if s.feasible]
    ranking: list[Standing] = []
    while feasible:
        most = max(s.goodput_per_s for s in feasible)
        tied = [s for s in feasible if s.goodput_per_s >= most * (1 - TIE)]
        first = min(tied, key=lambda s: (s.ttft_mean_s, s.policy))
        ranking.append(first)
        feasible.remove(first)
    others = sorted((s for s in standings if not s.feasible), key=lambda s: (_last_if_nan(s.distortion_mean), s.policy))
    pick = ranking[0].policy if ranking else None
    return StudyVerdict(pick, (*ranking, *others), _reason(ranking, max_distortion))


def regret(model: StudyVerdict, hardware: StudyVerdict) -> Regret:
    """Of believing the model; both verdicts must be over the same policies. Raises ValueError if they are not."""
    if {s.policy for s in model.ranking} != {s.policy for s in hardware.ranking}:
        raise ValueError("regret needs the same policies in both worlds")
    if model.pick is None or hardware.pick is None:
        return Regret(model.pick, hardware.pick, math.nan, math.nan, violates=model.pick is not None)
    picked, best = hardware.of(model.pick), hardware.of(hardware.pick)
    lost = (best.goodput_per_s - picked.goodput_per_s) / best.goodput_per_s if best.goodput_per_s > 0 else 0.0
    return Regret(model.pick, hardware.pick, lost, picked.ttft_mean_s - best.ttft_mean_s, violates=not picked.feasible)


def _standing(policy: str, summary: Mapping[str, Any], max_distortion: float) -> Standing:
    distortion = summary.get("distortion") or {}
    mean, p99 = _number(distortion.get("mean")), _number(distortion.get("p99"))
    reason = ""
    if math.isnan(mean) or math.isnan(p99):
        reason = "no request completed"
    elif mean > max_distortion:
        reason = f"mean distortion {mean:.3g} is above {max_distortion:.3g}"
    elif p99 > TAIL * max_distortion:
        reason = f"p99 distortion {p99:.3g} is above {TAIL * max_distortion:.3g}"
    return Standing(policy, _number(summary["goodput_per_s"]), _number(summary["ttft_s"]["mean"]), mean, p99, reason)


def _reason(ranking: list[Standing], max_distortion: float) -> str:
    if not ranking:
        return f"no policy keeps mean distortion within {max_distortion:.3g} and p99 within {TAIL * max_distortion:.3g}"
    first = ranking[0]
    if len(ranking) == 1:
        return f"{first.policy} alone keeps the distortion limits"
    if all(s.goodput_per_s <= first.goodput_per_s * (1 - TIE) for s in ranking[1:]):
        return f"{first.policy} has the most goodput, {first.goodput_per_s:.3g} requests/s"
    return f"{first.policy} has the lowest mean TTFT, {first.ttft_mean_s:.3g} s, of those within 1 % of the most goodput"


def _number(value: Any) -> float:
    """JSON has no nan: it comes back as None."""
    return math.nan if value is None else float(value)


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
