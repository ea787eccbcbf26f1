"""The best policy, and the decision regret: the loss on hardware from following the simulator's choice.

The best policy has the most goodput at the SLO among those with mean distortion <= D and p99 distortion <= 8 D (token-weighted). Goodputs
within 1 % of the highest are a tie, which the lower mean TTFT wins. Without these limits the lowest rate would win every latency figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.lib.intervals import UNKNOWN, Interval

TAIL = 8.0  # p99 distortion may be this many times the limit of the mean
TIE = 0.01  # share of the highest goodput


@dataclass(frozen=True, slots=True)
class Standing:
    """The figures of one policy. reason: why it is not feasible; empty if it is."""

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
    """Decision regret: how much worse the simulator's pick is on hardware than hardware's best policy.

    Parameters
    ----------
    simulated_pick, hardware_best : the two policies; None where no policy keeps the distortion limits.
    goodput_share : share of goodput lost by the pick; nan without two picks.
    ttft_s : mean TTFT that the pick adds, in seconds; nan without two picks.
    violates : whether the pick breaks the distortion limits on hardware; other figures do not make up for that.
    condition : condition of a validation under which the regret was found.
    goodput_interval, ttft_interval : paired 95 % intervals of the two figures, where repeats were measured.
    counted : goodput_share, or 0 where hardware cannot tell the two policies apart; nan where no repeats were measured.
    """

    simulated_pick: str | None
    hardware_best: str | None
    goodput_share: float
    ttft_s: float
    violates: bool
    condition: str = ""
    goodput_interval: Interval = UNKNOWN
    ttft_interval: Interval = UNKNOWN
    counted: float = math.nan


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


def regret(simulated: StudyVerdict, hardware: StudyVerdict) -> Regret:
    """The regret of following the simulator. Raises ValueError if the two verdicts are not over the same policies."""
    if {s.policy for s in simulated.ranking} != {s.policy for s in hardware.ranking}:
        raise ValueError("regret needs the same policies in both worlds")
    if simulated.pick is None or hardware.pick is None:
        return Regret(simulated.pick, hardware.pick, math.nan, math.nan, violates=simulated.pick is not None)
    picked, best = hardware.of(simulated.pick), hardware.of(hardware.pick)
    lost = (best.goodput_per_s - picked.goodput_per_s) / best.goodput_per_s if best.goodput_per_s > 0 else 0.0
    return Regret(simulated.pick, hardware.pick, lost, picked.ttft_mean_s - best.ttft_mean_s, violates=not picked.feasible)


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
    """JSON has no nan; it is stored as null and read as None."""
    return math.nan if value is None else float(value)


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
