"""Which policy a comparison recommends: of those that keep the bounds, the one with the most requests within the SLO."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from experiments.adaptation.outcome import LEAST_REPEATS, Margin, Pair, pair
from experiments.adaptation.scores import Interval, Score
from experiments.report.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Winner:
    """The policy with the most requests within the SLO that keeps the bounds, and the next one; mean TTFT decides between equal shares.

    Parameters
    ----------
    policy, second : their names; second is empty if no other policy keeps the bounds.
    against : the first against the second; None without a second one.
    repeats : number of repeats that the intervals are over.
    less_distorted : of the two, the one with less mean distortion.
    """

    policy: str
    second: str
    against: Pair | None
    repeats: int
    less_distorted: str

    @property
    def told_apart(self) -> bool:
        return self.against is not None and self.against.on_slo == "win"

    def plain(self) -> dict[str, Any]:
        against = asdict(self.against) if self.against else None
        return {"policy": self.policy, "second": self.second, "against_second": against, "told_apart": self.told_apart}


def winner(scores: Mapping[str, Score], left_out: Collection[str], slo_ttft_s: float, margin: Margin) -> Winner | None:
    """scores: policy -> its requests. left_out: policies that do not count, since they break the bounds or know the future."""
    ranked = sorted((s for name, s in scores.items() if name not in left_out), key=lambda s: (-s.attainment(slo_ttft_s), s.mean_ttft_s))
    if not ranked:
        return None
    first = ranked[0]
    if len(ranked) == 1:
        return Winner(first.name, "", None, len(first.ttft_s), first.name)
    second = ranked[1]
    less = min((first, second), key=lambda s: float(s.all_distortion.mean()))
    return Winner(first.name, second.name, pair(first, second, slo_ttft_s, margin), len(first.ttft_s), less.name)


def verdict(found: Winner | None, where: str) -> Verdict:
    """The answer of one comparison. where: its network and its D, in words."""
    if found is None:
        return Verdict("no_answer", None, f"No answer for {where}: no policy keeps the bounds of distortion", "allow more bits")
    if found.against is None:
        return Verdict("use", found.policy, f"Use {found.policy} for {where}: no other policy keeps the bounds of distortion", "")
    if found.told_apart:
        said = f"it keeps the SLO for {points(found.against.within_slo)} points more of the requests than {found.second}, the next"
        return Verdict("use", found.policy, f"Use {found.policy} for {where}: {said}", "")
    if found.repeats < LEAST_REPEATS:
        why = "one repeat has no interval: run repeats=5"
        return Verdict("no_answer", None, f"No answer for {where}: {found.policy} and {found.second} were run once", why)
    how = "are alike" if found.against.on_slo == "tie" else "cannot be told apart"
    both = f"{found.policy} and {found.second} {how} (within the SLO: {points(found.against.within_slo)} points)"
    return Verdict("tie", found.less_distorted, f"For {where}, {both}: take {found.less_distorted}, which has less distortion", "")


def points(made: Interval) -> str:
    """A difference of shares in percentage points, with its interval: 1.2 [0.4, 2.0]."""
    return f"{100 * made['difference']:.1f} [{100 * made['low']:.1f}, {100 * made['high']:.1f}]"
