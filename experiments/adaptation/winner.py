"""Which policy a comparison recommends: of those that keep the bounds, the one with the lowest mean TTFT, if repeats can tell it apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.adaptation.scores import Score, mean, ratio
from experiments.report.verdict import Verdict

LEAST_REPEATS = 2  # with one repeat there is no interval


@dataclass(frozen=True, slots=True)
class Winner:
    """The policy with the lowest mean TTFT within the bounds, and the next one.

    Parameters
    ----------
    policy, second : their names; second is empty if no other policy keeps the bounds.
    against : mean TTFT of the first over that of the second, with its 95 % interval; empty without a second one.
    repeats : number of repeats that the interval is over.
    less_distorted : of the two, the one with less mean distortion.
    """

    policy: str
    second: str
    against: Mapping[str, float]
    repeats: int
    less_distorted: str

    @property
    def told_apart(self) -> bool:
        return bool(self.against) and self.repeats >= LEAST_REPEATS and self.against["high"] < 1

    def plain(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "second": self.second,
            "ttft_mean_against_second": dict(self.against),
            "told_apart": self.told_apart,
        }


def winner(scores: Mapping[str, Score], left_out: Collection[str]) -> Winner | None:
    """scores: policy -> its requests. left_out: policies that do not count, since they break the bounds or know the future."""
    ranked = sorted((s for name, s in scores.items() if name not in left_out), key=lambda s: s.mean_ttft_s)
    if not ranked:
        return None
    first = ranked[0]
    if len(ranked) == 1:
        return Winner(first.name, "", {}, len(first.ttft_s), first.name)
    second = ranked[1]
    less = min((first, second), key=lambda s: float(s.all_distortion.mean()))
    return Winner(first.name, second.name, ratio(first.ttft_s, second.ttft_s, mean), len(first.ttft_s), less.name)


def verdict(found: Winner | None, where: str) -> Verdict:
    """The answer of one comparison. where: its network and its D, in words."""
    if found is None:
        return Verdict("no_answer", None, f"No answer for {where}: no policy keeps the bounds of distortion", "allow more bits")
    if not found.second:
        return Verdict("use", found.policy, f"Use {found.policy} for {where}: no other policy keeps the bounds of distortion", "")
    margin = f"{found.against['ratio']:.2f} [{found.against['low']:.2f}, {found.against['high']:.2f}]"
    if found.told_apart:
        return Verdict("use", found.policy, f"Use {found.policy} for {where}: its mean TTFT is {margin} of {found.second}'s, the next", "")
    if found.repeats < LEAST_REPEATS:
        why = "one repeat has no interval: run repeats=5"
        return Verdict("no_answer", None, f"No answer for {where}: {found.policy} and {found.second} were run once", why)
    pair = f"{found.policy} and {found.second} cannot be told apart (mean TTFT {margin})"
    return Verdict("tie", found.less_distorted, f"For {where}, {pair}: take {found.less_distorted}, which has less distortion", "")
