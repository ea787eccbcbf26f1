"""The outcome of one pair of policies, with a margin: win, lose, tie, or that the repeats cannot tell.

A difference below the margin does not matter to a user. So a tie is a finding: the whole interval lies within the margin. An interval that
is too wide to say anything is not a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abkt.ranges import bound
from experiments.adaptation.scores import Interval, Score, difference, mean, p99, ratio, within

Outcome = Literal["win", "lose", "tie", "cannot tell"]
LEAST_REPEATS = 2  # with one repeat there is no interval


@dataclass(frozen=True, slots=True)
class Margin:
    """What is too small to matter. within_slo: difference of the shares within the SLO. ttft: relative difference of mean TTFT."""

    within_slo: float = 0.01
    ttft: float = 0.02

    def __post_init__(self) -> None:
        bound(self, "within_slo", "ttft", least=0, below=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """One policy against another on the same requests.

    Parameters
    ----------
    within_slo : difference of the shares within the SLO, with its 95 % interval; above 0 the first is better.
    ttft_mean : ratio of mean TTFT, with its interval; below 1 the first is better.
    exposed_p99 : ratio of p99 exposed transfer time, with its interval; None if a repeat has too few requests for a p99.
    distortion_mean : ratio of mean distortion, with its interval.
    on_slo, on_ttft : the outcomes for the first policy.
    """

    within_slo: Interval
    ttft_mean: Interval
    exposed_p99: Interval | None
    distortion_mean: Interval
    on_slo: Outcome
    on_ttft: Outcome


def outcome(gain: float, low: float, high: float, margin: float, repeats: int) -> Outcome:
    """The outcome of a gain (above 0: better) with its 95 % interval.

    A win: the interval lies above 0 and the gain is at least the margin. A tie: the whole interval lies within the margin.
    """
    if repeats < LEAST_REPEATS:
        return "cannot tell"
    if low > 0 and gain >= margin:
        return "win"
    if high < 0 and gain <= -margin:
        return "lose"
    return "tie" if -margin <= low and high <= margin else "cannot tell"


def pair(ours: Score, theirs: Score, slo_ttft_s: float, margin: Margin) -> Pair:
    repeats = len(ours.ttft_s)
    slo = difference(ours.ttft_s, theirs.ttft_s, within(slo_ttft_s))
    ttft = ratio(ours.ttft_s, theirs.ttft_s, mean)
    return Pair(
        slo,
        ttft,
        ratio(ours.exposed_s, theirs.exposed_s, p99) if ours.has_p99 and theirs.has_p99 else None,
        ratio(ours.distortion, theirs.distortion, mean),
        outcome(slo["difference"], slo["low"], slo["high"], margin.within_slo, repeats),
        outcome(1 - ttft["ratio"], 1 - ttft["high"], 1 - ttft["low"], margin.ttft, repeats),
    )
